"""Matrices as views of host memory and of a copy of its bytes, which is what a GPU gets."""

import pytest
import torch

from server.model.adapter_weights import Terms
from tests.support.weights import in_one_piece


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_copy_of_the_bytes_has_the_same_matrices(dtype: torch.dtype) -> None:
    """Also where they lie at an odd place for their format: the fp32 ones here begin at byte six."""
    given = Terms(torch.randn(3, 8).to(dtype), torch.randn(3, 5).to(dtype), 0.5)
    weights = in_one_piece({"q": given})
    (linear,) = weights.layout.linears
    bytes_ = torch.frombuffer(weights.memory, dtype=torch.uint8).clone()
    for matrix, expected in ((linear.a, given.a), (linear.b, given.b)):
        assert torch.equal(matrix.of(weights.memory), expected)
        assert torch.equal(matrix.of_bytes(bytes_), expected)
