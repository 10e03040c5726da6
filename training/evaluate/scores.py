"""Answers to numbers: ROUGE-L, exact match, AR, BWT, confusion. Pure functions.

a[t][i]  mean score on task i after task t was learned
AR  = mean over i of a[T][i]                       BWT = mean over i < T of (a[T][i] - a[i][i])
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from statistics import mean

from rouge_score.rouge_scorer import RougeScorer

Matrix = Sequence[Sequence[float] | None]


def rouge_l(answer: str, wanted: str) -> float:
    """F-measure of the longest common subsequence of stemmed words, in percent; letters outside a-z part words."""
    found = _scorer().score(wanted, answer)  # type: ignore[no-untyped-call]
    return 100.0 * float(found["rougeL"].fmeasure)


def exact(answer: str, wanted: str) -> float:
    """100 or 0; white space around and between words aside."""
    return 100.0 * (answer.split() == wanted.split())


def average_result(scores: Matrix) -> float:
    """AR; `scores[t][i]` for i up to t, None for a stage not looked at. The last one must be there."""
    final = scores[-1]
    assert final is not None, "every method is looked at after the last task. This is a bug."
    return mean(final)


def backward_transfer(scores: Matrix) -> float | None:
    """BWT; None where a stage was not looked at, or there is a single task."""
    final = scores[-1]
    assert final is not None, "every method is looked at after the last task. This is a bug."
    changes = []
    for task, stage in enumerate(scores[:-1]):
        if stage is None:
            return None
        changes.append(final[task] - stage[task])
    return mean(changes) if changes else None


def curve(scores: Matrix) -> list[float | None]:
    """After each task, the mean over those learned by then."""
    return [None if stage is None else mean(stage) for stage in scores]


def confusion(tasks: Sequence[str], answered_by: Sequence[str], columns: Sequence[str]) -> list[list[int]]:
    """Rows of each task (in the order of their first coming) by who answered them."""
    counts = Counter(zip(tasks, answered_by, strict=True))
    return [[counts[task, column] for column in columns] for task in dict.fromkeys(tasks)]


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)  # type: ignore[no-untyped-call]
