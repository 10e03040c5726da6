"""Slots filled in one native call against the same matrix by matrix, bit by bit."""

from collections.abc import Mapping

import pytest
import torch

from server.model.adapter_weights import AdapterWeights, Terms
from server.model.lora import Arena, LoraArenas
from server.model.lora_plan import Slots
from server.model.native import Kernels
from tests.support.weights import in_one_piece

NUM_SLOTS, SLOT_RANK = 6, 4
LINEARS = {"layers.0": (16, {"q": 24, "k": 8, "v": 8}), "layers.1": (40, {"down": 16})}
SLOTS, RANKS = range(1, 4), [1, 4, 5, 11, 12]
SPECIALS = [0.0, -0.0, 1e-40, 3.39e38, 1.00390625, -1.01171875]


def arenas(kernels: Kernels) -> list[Arena]:
    return [
        Arena(
            [f"{layer}.{name}" for name in widths],
            features=(width_in, list(widths.values())),
            num_slots=NUM_SLOTS,
            slot_rank=SLOT_RANK,
            dtype=torch.bfloat16,
            device=torch.device("cpu"),
            kernels=kernels,
        )
        for layer, (width_in, widths) in LINEARS.items()
    ]


def terms(rank: int, dtype: torch.dtype, scaling: float = 1.0, *, without: str = "none") -> Mapping[str, Terms]:
    generator = torch.Generator().manual_seed(rank)

    def matrix(columns: int) -> torch.Tensor:
        numbers = torch.randn(rank, columns, generator=generator)
        numbers.view(-1)[: len(SPECIALS)] = torch.tensor(SPECIALS)
        return numbers.to(dtype)

    return {
        f"{layer}.{name}": Terms(matrix(width_in), matrix(width_out), scaling)
        for layer, (width_in, widths) in LINEARS.items()
        for name, width_out in widths.items()
        if without not in f"{layer}.{name}"
    }


def contents(arenas: list[Arena]) -> list[torch.Tensor]:
    """Bits, for zeros have signs."""
    return [tensor.view(torch.int16) for arena in arenas for tensor in (arena.a, *arena.b)]


def check(kernels: Kernels, weights: AdapterWeights, slots: Slots = SLOTS) -> None:
    by_hand, native = arenas(kernels), arenas(kernels)
    for arena in by_hand:
        arena.write(slots, weights.terms())
    filled = LoraArenas(native, kernels)
    filled.write(slots, weights)
    assert any(bool(tensor.any()) for tensor in contents(native))
    for expected, actual in zip(contents(by_hand), contents(native), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    filled.erase(slots)
    assert not any(bool(tensor.any()) for tensor in contents(native))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scaling", [1.0, 2.0, 1 / 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_slots_are_filled_as_matrix_by_matrix(kernels: Kernels, rank: int, scaling: float, dtype: torch.dtype) -> None:
    check(kernels, in_one_piece(terms(rank, dtype, scaling)))


@pytest.mark.parametrize("without", ["q", "layers.1"])
def test_linears_that_an_expert_does_not_target_stay_empty(kernels: Kernels, without: str) -> None:
    check(kernels, in_one_piece(terms(5, torch.bfloat16, without=without)))


def test_formats_that_differ_are_no_matter(kernels: Kernels) -> None:
    mixed = {**terms(5, torch.bfloat16), **terms(5, torch.float32, without="layers.1")}
    check(kernels, in_one_piece(mixed))


def test_ranks_may_differ_from_linear_to_linear(kernels: Kernels) -> None:
    check(kernels, in_one_piece({**terms(9, torch.bfloat16), **terms(2, torch.bfloat16, without="layers.1")}))


def test_experts_of_one_layout_share_what_says_where_they_go(kernels: Kernels) -> None:
    filled = LoraArenas(arenas(kernels), kernels)
    first, second = (in_one_piece(terms(4, torch.bfloat16, scaling)) for scaling in (1.0, 1.0))
    second = AdapterWeights(second.memory, first.layout)
    filled.write(range(1), first)
    filled.write(range(3, 4), second)
    assert filled._filler is not None
    assert len(filled._filler._fills) == 1


def test_neighbours_are_left_alone(kernels: Kernels) -> None:
    own = arenas(kernels)
    filled = LoraArenas(own, kernels)
    for slots in (range(1), range(1, 4), range(4, 6)):
        filled.write(slots, in_one_piece(terms(4 * len(slots), torch.bfloat16)))
    before = [tensor.clone() for tensor in contents(own)]
    filled.erase(range(1, 4))
    filled.write(range(1, 4), in_one_piece(terms(12, torch.bfloat16)))
    for expected, actual in zip(before, contents(own), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
