"""Shapes and numbers of decode steps. What such steps compute is in tests/engine/test_decode.py."""

import pytest
import torch

from server.model.decode import DecodeShape, DecodeStep
from server.model.lora import Blend, Slots
from server.model.paged_kv import KVGeometry, PagedKV, SegmentSpan

CPU = torch.device("cpu")
ONE, TWO = range(1), range(2, 4)
BLEND = Blend((ONE, TWO), torch.tensor([[0.5, 2.0], [0.25, 4.0]]))
SPANS = [SegmentSpan(0, 1, 5, [4]), SegmentSpan(1, 1, 30, [7, 6]), SegmentSpan(2, 1, 16, [8, 2, 9])]


def new_step(shape: DecodeShape) -> DecodeStep:
    kv = PagedKV(geometry=KVGeometry(2, 2, 8), num_blocks=12, block_tokens=16, dtype=torch.float32, device=CPU)
    return DecodeStep(shape, kv, num_layers=2, empty_slot=31)


@pytest.mark.parametrize(
    ("slots_T", "slots", "weighed"),
    [([None] * 3, 0, False), ([ONE, None, ONE], 1, False), ([TWO, ONE, None], 2, False), ([BLEND, ONE, None], 4, True)],
)
def test_few_shapes_serve_all_steps(slots_T: list[Slots | Blend | None], slots: int, weighed: bool) -> None:
    assert DecodeShape.of(SPANS, slots_T, 16) == DecodeShape(rows=4, blocks=8, slots=slots, weighed=weighed)


@pytest.mark.parametrize(("position", "blocks"), [(0, 8), (127, 8), (128, 16), (255, 16), (256, 32)])
def test_a_shape_has_room_for_the_token_itself(position: int, blocks: int) -> None:
    span = SegmentSpan(0, 1, position, range(99))
    assert DecodeShape.of([span], [None], 16).blocks == blocks


def test_rows_beyond_the_steps_own_do_what_the_first_one_does() -> None:
    step = new_step(DecodeShape.of(SPANS, [BLEND, ONE, None], 16))
    step.fill([9, 9, 9], [*SPANS[::-1]], [TWO, BLEND, BLEND])  # what an earlier step leaves
    step.fill([7, 99, 300], SPANS, [BLEND, ONE, None])
    assert step.tokens_B.tolist() == [7, 99, 300, 7]
    assert step.positions_B.tolist() == [5, 30, 16, 5]
    (batch,) = step.lora().batches  # type: ignore[union-attr]
    assert batch.slots.view(4, 4).tolist() == [[0, 2, 3, 31], [0, 31, 31, 31], [31] * 4, [0, 2, 3, 31]]  # type: ignore[union-attr]
    assert batch.weight_Lm is not None
    assert batch.weight_Lm[1].view(4, 4)[:, :3].tolist() == [[0.25, 4, 4], [1, 1, 1], [1, 1, 1], [0.25, 4, 4]]
    places = step.attention().place_T.view(-1).tolist()
    heads = 2 * 2 * 16
    assert places == [4 * heads + 5, 6 * heads + 14, 2 * heads, 4 * heads + 5]


def test_a_step_of_the_base_alone_has_no_experts() -> None:
    step = new_step(DecodeShape.of(SPANS, [None] * 3, 16))
    step.fill([1, 2, 3], SPANS, [None] * 3)
    assert step.lora() is None
