"""Shapes and numbers of decode steps. What such steps compute is in tests/engine/test_decode.py."""

import pytest
import torch

from server.model import lora_plan
from server.model.decode import DecodeShape, DecodeStep
from server.model.lora_plan import Blend, Slots
from server.model.paged_kv import KVGeometry, PagedKV, SegmentSpan

CPU = torch.device("cpu")
NUM_SLOTS = 5
ONE, TWO = range(1), range(2, 4)
BLEND = Blend((ONE, TWO), torch.tensor([[0.5, 2.0], [0.25, 4.0]]))
SPANS = [SegmentSpan(0, 1, 5, [4]), SegmentSpan(1, 1, 30, [7, 6]), SegmentSpan(2, 1, 16, [8, 2, 9])]


def new_step(shape: DecodeShape) -> DecodeStep:
    kv = PagedKV(geometry=KVGeometry(2, 2, 8), num_blocks=12, block_tokens=16, dtype=torch.float32, device=CPU)
    return DecodeStep(shape, kv, num_layers=2, num_slots=NUM_SLOTS)


def shape_of(slots_T: list[Slots | Blend | None]) -> DecodeShape:
    return DecodeShape.of(SPANS, slots_T, block_tokens=16, num_slots=NUM_SLOTS)


@pytest.mark.parametrize(
    ("slots_T", "slots", "weighed"),
    [([None] * 3, 0, False), ([ONE, None, ONE], 5, False), ([TWO, ONE, None], 5, False), ([BLEND, ONE, None], 5, True)],
)
def test_few_shapes_serve_all_steps(slots_T: list[Slots | Blend | None], slots: int, weighed: bool) -> None:
    assert shape_of(slots_T) == DecodeShape(rows=4, blocks=8, slots=slots, weighed=weighed)


def test_of_very_many_slots_a_shape_has_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_plan, "_ALL_SLOTS", 4)
    assert [shape_of(slots_T).slots for slots_T in ([ONE] * 3, [TWO] * 3, [TWO, ONE, None])] == [1, 2, 4]


@pytest.mark.parametrize(("position", "blocks"), [(0, 8), (127, 8), (128, 16), (255, 16), (256, 32)])
def test_a_shape_has_room_for_the_token_itself(position: int, blocks: int) -> None:
    span = SegmentSpan(0, 1, position, range(99))
    assert DecodeShape.of([span], [None], block_tokens=16, num_slots=NUM_SLOTS).blocks == blocks


@pytest.mark.parametrize("most", [4, NUM_SLOTS])
def test_rows_beyond_the_steps_own_do_what_the_first_one_does(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_plan, "_ALL_SLOTS", most)
    step = new_step(shape_of([BLEND, ONE, None]))
    step.fill([9, 9, 9], [*SPANS[::-1]], [TWO, BLEND, BLEND])  # what an earlier step leaves
    step.fill([7, 99, 300], SPANS, [BLEND, ONE, None])
    assert step.tokens_B.tolist() == [7, 99, 300, 7]
    assert step.positions_B.tolist() == [5, 30, 16, 5]
    plan = step.lora()
    assert plan is not None
    assert plan.dense is not None
    slots = range(5) if plan.dense.slots_S is None else plan.dense.slots_S.tolist()
    own = [[slot for slot, own in zip(slots, row, strict=True) if own] for row in plan.dense.own_TS.tolist()]
    assert own == [[0, 2, 3], [0], [], [0, 2, 3]]
    assert plan.dense.weight_LTS is not None
    weight_TS = plan.dense.weight_LTS[1].masked_fill(~plan.dense.own_TS, 0)
    weights = [[w for w in row if w] for row in weight_TS.tolist()]
    assert weights == [[0.25, 4, 4], [1], [], [0.25, 4, 4]]
    heads = 2 * 2 * 16
    assert step.attention().place_T.tolist() == [4 * heads + 5, 6 * heads + 14, 2 * heads, 4 * heads + 5]


def test_a_step_of_the_base_alone_has_no_experts() -> None:
    step = new_step(shape_of([None] * 3))
    step.fill([1, 2, 3], SPANS, [None] * 3)
    assert step.lora() is None
