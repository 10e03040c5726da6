"""Everything here needs a GPU and is skipped where there is none."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
