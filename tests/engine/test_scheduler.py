"""Which tokens a step takes, as pure bookkeeping."""

import pytest

from server.engine.kv_cache import BlockTable, Reservation
from server.engine.scheduler import PATIENT_TOKENS, BlockCopy, Choice, Fork, Sequence, plan_step


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


def test_a_prompt_longer_than_a_step_leaves_a_quarter_to_those_behind_it() -> None:
    assert spans([sequence(50), sequence(4)], 20) == [(0, 0, 16, None), (1, 0, 4, None)]
    assert spans([sequence(50), sequence(9)], 20) == [(0, 0, 15, None), (1, 0, 5, None)]
    assert spans([sequence(50), sequence(9, 8), sequence(3)], 21) == [
        (1, 8, 9, None),
        (0, 0, 17, None),
        (2, 0, 3, None),
    ]
    assert spans([sequence(50), sequence(60), sequence(70)], 64) == [
        (0, 0, 50, None),
        (1, 0, 14, None),
    ], "not longer than a step"


def test_nothing_is_left_to_those_who_could_not_use_it() -> None:
    parent = sequence(50)
    fork = sequence(50)
    fork.fork = Fork(parent, num_shared=50, copy=None)
    assert fork.awaits_parent
    assert spans([parent, fork], 20) == [(0, 0, 20, None)]


def test_a_whole_family_finds_room_behind_a_long_prompt() -> None:
    parent, fork = sequence(6), sequence(8, 6, start=6)
    fork.fork = Fork(parent, num_shared=6, copy=None)
    assert spans([sequence(500), parent, fork], 64) == [(0, 0, 56, None), (1, 0, 6, None), (2, 6, 8, 0)]


@pytest.mark.parametrize("budget", [1, 3, 4, 7, 64])
def test_long_prompts_and_short_ones_all_come_to_their_end(budget: int) -> None:
    waiting = [sequence(total) for total in (200, 3, 150, 1, 90, 40)]
    steps = 0
    while any(s.num_pending for s in waiting):
        plan = plan_step(waiting, budget=budget)
        assert plan.num_tokens == min(budget, sum(s.num_pending for s in waiting)), "no step takes less than it could"
        for segment in plan.segments:
            segment.sequence.computed = segment.end
        steps += 1
    assert steps == -(-sum(len(s.tokens) for s in waiting) // budget)


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


def test_two_logits_may_be_wanted_on_the_way_or_instead() -> None:
    def wanted(budget: int) -> list[tuple[bool, Choice | None]]:
        return [(s.wants_logits, s.choice) for s in plan_step([probe], budget=budget).segments]

    probe = sequence(12, 5)
    probe.choice = Choice(8, (3, 4))
    assert wanted(50) == [(True, probe.choice)]
    assert wanted(3) == [(False, probe.choice)]
    assert wanted(2) == [(False, None)]
    probe.computed = 8
    assert wanted(50) == [(True, None)]
    probe.choice = Choice(12, (3, 4))
    assert wanted(50) == [(False, probe.choice)]


@pytest.mark.parametrize(
    ("wants_logits", "at", "expected"),
    [(True, None, 11), (False, None, 12), (True, 8, 7), (False, 8, 7), (False, 12, 11)],
)
def test_tokens_behind_which_logits_are_wanted_cannot_come_from_elsewhere(
    wants_logits: bool, at: int | None, expected: int
) -> None:
    probe = sequence(12)
    probe.wants_logits, probe.choice = wants_logits, None if at is None else Choice(at, (3, 4))
    assert probe.num_reusable == expected


def forked(parent: Sequence, total: int, shared: int, *, row: int) -> Sequence:
    child = sequence(total, shared, start=shared, row=row)
    child.fork = Fork(parent, shared, BlockCopy(1, 2 + row, shared % 4))
    return child


def test_forks_go_into_the_step_that_completes_what_they_share() -> None:
    parent = sequence(10)
    children = [forked(parent, 13, 10, row=0), forked(parent, 12, 10, row=4)]
    plan = plan_step([parent, *children], budget=50)
    assert [(s.start, s.end) for s in plan.segments] == [(0, 10), (10, 13), (10, 12)]
    assert plan.copies == [BlockCopy(1, 2, 2), BlockCopy(1, 6, 2)]


def test_forks_borrow_what_they_lack_until_they_go_on() -> None:
    parent = sequence(10)
    child = forked(parent, 13, 10, row=0)
    copy = BlockCopy(1, 2, 2)
    plan = plan_step([parent, child], budget=12, borrow=True)
    assert [(s.start, s.end, s.borrowed) for s in plan.segments] == [(0, 10, None), (10, 12, copy)]
    assert plan.copies == []
    parent.computed, child.computed = 10, 12
    plan = plan_step([parent, child], budget=12, borrow=True)
    assert [(s.start, s.end, s.borrowed) for s in plan.segments] == [(12, 13, None)]
    assert plan.copies == [copy]


def test_both_segments_of_a_fork_borrow() -> None:
    parent = sequence(10)
    child = forked(parent, 13, 10, row=0)
    child.activation_start = 11
    plan = plan_step([parent, child], budget=50, borrow=True)
    assert [(s.start, s.end, s.borrowed) for s in plan.segments[1:]] == [
        (10, 11, BlockCopy(1, 2, 2)),
        (11, 13, BlockCopy(1, 2, 2)),
    ]


def test_forks_of_one_token_come_behind_their_parent_too() -> None:
    parent = sequence(10)
    plan = plan_step([parent, forked(parent, 11, 10, row=0), sequence(6, 5)], budget=50)
    assert [(s.start, s.end) for s in plan.segments] == [(5, 6), (0, 10), (10, 11)]


def test_forks_wait_while_what_they_share_is_not_complete() -> None:
    parent = sequence(10)
    child = forked(parent, 13, 8, row=0)
    assert plan_step([parent, child], budget=7).copies == []
    parent.computed = 7
    plan = plan_step([parent, child], budget=4)
    assert [(s.sequence is child, s.start, s.end) for s in plan.segments] == [(False, 7, 10), (True, 8, 9)]


def test_a_fork_of_a_computed_parent_needs_no_place_behind_it() -> None:
    parent = sequence(10, 10)
    assert [s.start for s in plan_step([forked(parent, 13, 10, row=0)], budget=50).segments] == [10]


def patient_spans(others: list[Sequence], patient: list[Sequence], budget: int) -> list[tuple[int, int, int]]:
    everybody = [*others, *patient]
    plan = plan_step(others, patient=patient, budget=budget)
    return [(everybody.index(s.sequence), s.start, s.end) for s in plan.segments]


def test_the_patient_are_computed_a_few_tokens_at_a_time_beside_others() -> None:
    decode, one, two = sequence(8, 7), sequence(3), sequence(9)
    assert patient_spans([decode], [one, two], 50) == [(0, 7, 8), (1, 0, 3), (2, 0, 1)]
    one.computed, two.computed = 3, 1
    assert patient_spans([decode], [one, two], 50) == [(0, 7, 8), (2, 1, 1 + PATIENT_TOKENS)]


def test_the_patient_alone_are_computed_like_any_other() -> None:
    assert patient_spans([sequence(8, 8)], [sequence(30), sequence(30)], 50) == [(1, 0, 30), (2, 0, 20)]


@pytest.mark.parametrize(("budget", "share"), [(50, PATIENT_TOKENS), (2, 1)])
def test_however_many_others_there_are_the_patient_come_to_their_end(budget: int, share: int) -> None:
    assert patient_spans([sequence(500)], [sequence(9)], budget) == [(0, 0, budget - share), (1, 0, share)]


def test_a_patient_fork_waits_for_its_parent_as_any_other() -> None:
    parent = sequence(6)
    child = forked(parent, 9, 6, row=0)
    assert patient_spans([sequence(8, 7)], [parent, child], 50) == [(0, 7, 8), (1, 0, PATIENT_TOKENS)]
    parent.computed = PATIENT_TOKENS
    assert patient_spans([sequence(8, 7)], [parent, child], 50) == [(0, 7, 8), (1, 4, 6), (2, 6, 8)]
