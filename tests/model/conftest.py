"""The compiled kernels, built once for all tests."""

import shutil
from pathlib import Path

import pytest
import torch

from server.model.native import LEVELS, Kernels, build, load_kernels


@pytest.fixture(scope="session")
def every_kernels(kernels: Kernels, tmp_path_factory: pytest.TempPathFactory) -> list[Kernels]:
    """For this processor, and for all lower levels."""
    levels = list(LEVELS)  # the highest first
    lower = levels[levels.index(torch.backends.cpu.get_cpu_capability()) + 1 :]
    folder = tmp_path_factory.mktemp("levels")
    return [kernels, *(Kernels(build(folder, LEVELS[level])) for level in lower)]


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    if shutil.which("gcc") is None or torch.backends.cpu.get_cpu_capability() not in LEVELS:
        pytest.skip("no C compiler, or not the processor the kernels are for")
    loaded = load_kernels(Path(tmp_path_factory.mktemp("kernels")))
    assert loaded is not None, "there is a compiler, so there must be kernels"
    return loaded
