"""Rounds within a time budget, on a clock that is told what rounds take."""

from collections.abc import Sequence

import pytest

from benchmarks.turns import turns


class Clock:
    """Stands still unless somebody moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def made(durations: Sequence[float], *, minutes: float, at_least: int) -> list[int]:
    clock = Clock()
    numbers = []
    for number in turns(len(durations), minutes=minutes, at_least=at_least, clock=clock):
        numbers.append(number)
        clock.now += durations[number]
    return numbers


@pytest.mark.parametrize(
    ("durations", "minutes", "at_least", "numbers"),
    [
        ([10, 10, 10], 1, 1, [0, 1, 2]),
        ([30, 30, 30], 1, 1, [0, 1]),
        ([40, 10, 10], 1, 1, [0]),  # another one like the longest would not fit
        ([90, 90, 90], 1, 1, [0]),
        ([90, 90, 90], 0, 2, [0, 1]),
        ([1], 0, 5, [0]),
    ],
)
def test_rounds_are_made_while_one_like_the_longest_fits(
    durations: list[float], minutes: float, at_least: int, numbers: list[int]
) -> None:
    assert made(durations, minutes=minutes, at_least=at_least) == numbers
