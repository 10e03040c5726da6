"""Which tokens a step takes, as pure bookkeeping."""

from server.engine.kv_cache import BlockTable, Reservation
from server.engine.scheduler import Sequence, plan_step


def sequence(total: int, computed: int = 0, *, start: int | None = None, row: int = 0) -> Sequence:
    slots = None if start is None else range(row, row + 4)
    return Sequence(
        list(range(total)), BlockTable(Reservation(0)), slots=slots, activation_start=start, computed=computed
    )


def spans(sequences: list[Sequence], budget: int) -> list[tuple[int, int, int, int | None]]:
    plan = plan_step(sequences, budget=budget)
    return [(sequences.index(s.sequence), s.start, s.end, s.slots.start if s.slots else None) for s in plan.segments]


def test_decodes_come_before_prefills_and_the_budget_cuts_the_last_prefill() -> None:
    assert spans([sequence(10), sequence(8, 7), sequence(20)], 15) == [
        (1, 7, 8, None),
        (0, 0, 10, None),
        (2, 0, 4, None),
    ]


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    long = sequence(25)
    for start, end in ((0, 10), (10, 20), (20, 25)):
        assert spans([long], 10) == [(0, start, end, None)]
        long.computed = end
    assert spans([long], 10) == []


def test_an_expert_that_wakes_up_on_the_way_splits_its_chunk() -> None:
    assert spans([sequence(10, 2, start=6)], 50) == [(0, 2, 6, None), (0, 6, 10, 0)]
    assert spans([sequence(10, 2, start=6)], 4) == [(0, 2, 6, None)]
    assert spans([sequence(10, 6, start=6)], 50) == [(0, 6, 10, 0)]


def test_segments_are_ordered_by_expert_with_the_base_first() -> None:
    ordered = spans([sequence(5, 4, start=0, row=8), sequence(5, 4, start=0, row=4), sequence(5, 4)], 50)
    assert [row for *_, row in ordered] == [None, 4, 8]


def test_logits_are_wanted_only_at_the_end_and_only_where_asked_for() -> None:
    silent = sequence(5)
    silent.wants_logits = False
    plan = plan_step([silent, sequence(5), sequence(50)], budget=20)
    assert [segment.wants_logits for segment in plan.segments] == [False, True, False]
