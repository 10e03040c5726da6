"""The bench's arithmetic against numbers worked out by hand."""

import pytest

from training.evaluate.scores import average_result, backward_transfer, confusion, curve, exact, rouge_l


def test_ar_is_the_mean_after_the_last_task() -> None:
    assert average_result([[90.0], [60.0, 80.0], [30.0, 70.0, 50.0]]) == 50.0


def test_bwt_is_the_mean_change_since_each_task_was_learned() -> None:
    scores = [[90.0], [60.0, 80.0], [30.0, 70.0, 50.0]]
    assert backward_transfer(scores) == ((30 - 90) + (70 - 80)) / 2


def test_bwt_is_unknown_where_a_stage_was_not_looked_at_or_nothing_came_before() -> None:
    assert backward_transfer([None, [60.0, 80.0]]) is None
    assert backward_transfer([[60.0]]) is None
    assert average_result([None, [60.0, 80.0]]) == 70.0


def test_the_curve_is_the_mean_over_what_was_learned_so_far() -> None:
    assert curve([[90.0], None, [30.0, 70.0, 50.0]]) == [90.0, None, 50.0]


def test_confusion_counts_who_answered_each_task() -> None:
    tasks, by = ["a", "a", "b", "b", "b"], ["a", "base", "b", "a", "b"]
    assert confusion(tasks, by, ["a", "b", "base"]) == [[1, 0, 1], [1, 2, 0]]


@pytest.mark.parametrize(
    ("answer", "wanted", "score"),
    [
        ("the cat sat", "the cat sat", 100.0),
        ("the cat", "the cat sat down", 100 * 2 * (2 / 2) * (2 / 4) / (2 / 2 + 2 / 4)),
        ("sat cat the", "the cat sat", 100 / 3),
        ("", "something", 0.0),
        ("runs", "running", 100.0),
    ],
)
def test_rouge_l_is_that_of_the_longest_common_subsequence_of_stems(answer: str, wanted: str, score: float) -> None:
    assert rouge_l(answer, wanted) == pytest.approx(score)


def test_exact_match_ignores_white_space_alone() -> None:
    assert exact(" a  b\n", "a b") == 100.0
    assert exact("A b", "a b") == 0.0
