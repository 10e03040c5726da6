"""The compiled kernels, built once for all tests."""

import shutil
from pathlib import Path

import pytest
import torch

from server.model.native import Kernels, applies_to, load_kernels


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    if shutil.which("gcc") is None or not applies_to(torch.empty(1, dtype=torch.bfloat16)):
        pytest.skip("no C compiler, or not the processor the kernels are for")
    loaded = load_kernels(Path(tmp_path_factory.mktemp("kernels")))
    assert loaded is not None, "there is a compiler, so there must be kernels"
    return loaded
