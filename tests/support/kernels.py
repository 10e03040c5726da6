"""The compiled kernels, each level built once for all tests, also where several processes run them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from server.model import native
from server.model.native import LEVELS, Kernels, build, load_kernels


@pytest.fixture(scope="session")
def kernels_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where libraries are built, however long it takes here; that of all processes of a run."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "every-level"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_COMPILE_SECONDS", 250)
        yield folder


@pytest.fixture(scope="session")
def every_kernels(kernels: Kernels, kernels_folder: Path) -> list[Kernels]:
    """For this processor, and for all lower levels."""
    levels = list(LEVELS)  # the highest first
    lower = levels[levels.index(torch.backends.cpu.get_cpu_capability()) + 1 :]
    return [kernels, *(Kernels(built(kernels_folder, LEVELS[level])) for level in lower)]


@pytest.fixture(scope="session")
def kernels(kernels_folder: Path) -> Kernels:
    if shutil.which("gcc") is None or torch.backends.cpu.get_cpu_capability() not in LEVELS:
        pytest.skip("no C compiler, or not the processor the kernels are for")
    built(kernels_folder, LEVELS[torch.backends.cpu.get_cpu_capability()])
    loaded = load_kernels(kernels_folder)
    assert loaded is not None, "there is a compiler, so there must be kernels"
    return loaded


def built(folder: Path, level: str) -> Path:
    """`build`, for one process at a time, so that the others find what it made."""
    with FileLock(folder / "lock"):
        return build(folder, level)
