"""The guard that rows give an expert: against the obvious loop, on clouds of points, and when they give none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.guard import LEFT_OUT, MIN_ROWS, fit_guard, widen_guard

WIDTH = 16


def cloud(seed: int, count: int, around: int, spread: float = 0.5) -> NDArray[np.float32]:
    """Unit vectors about one axis."""
    points = np.random.default_rng(seed).normal(0, spread / np.sqrt(WIDTH), (count, WIDTH))
    points[:, around] += 1
    unit: NDArray[np.float32] = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return unit


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(MIN_ROWS, 220), st.integers(0, 30), st.floats(0.1, 3))
def test_the_threshold_is_that_of_the_obvious_loop(seed: int, count: int, num_held_out: int, spread: float) -> None:
    own, held_out, negatives = cloud(seed, count, 0, spread), cloud(seed + 1, num_held_out, 0, spread), cloud(2, 40, 1)
    guard = fit_guard(list(own), list(held_out), list(negatives))
    assert guard is not None
    centre = negatives.astype(np.float64).mean(axis=0)
    exact = own.astype(np.float64)
    left_out = [
        cosine(row - centre, np.delete(exact, number, axis=0).mean(axis=0) - centre) for number, row in enumerate(exact)
    ]
    new = [cosine(row - centre, exact.mean(axis=0) - centre) for row in held_out.astype(np.float64)]
    lowest = [sorted(some)[int(LEFT_OUT * (len(some) - 1))] for some in (left_out, new) if some]
    assert guard.least == pytest.approx(min(lowest), abs=3e-6)
    assert guard.least < min(lowest)
    assert (~guard.knows(held_out)).sum() <= LEFT_OUT * num_held_out


def test_its_own_are_known_and_strangers_that_nobody_showed_it_are_not() -> None:
    guard = fit_guard(list(cloud(0, 200, 0)), list(cloud(1, 20, 0)), list(cloud(2, 60, 1)))
    assert guard is not None
    assert guard.knows(cloud(3, 200, 0)).mean() > 0.95
    assert not guard.knows(cloud(4, 200, 1)).any()
    for axis in (2, 3, 4):
        assert not guard.knows(cloud(5, 200, axis)).any(), "no negative lay there"


def test_held_out_rows_in_other_wordings_widen_it() -> None:
    own, negatives = list(cloud(0, 200, 0)), list(cloud(2, 60, 1))
    others = list(cloud(6, 20, 0, spread=2.0))
    narrow, wide = fit_guard(own, [], negatives), fit_guard(own, others, negatives)
    assert narrow is not None
    assert wide is not None
    assert wide.least < narrow.least
    assert wide.knows(np.stack(others)).all()


@pytest.mark.parametrize("times", [2, 30])
def test_a_row_that_stands_there_again_counts_once(times: int) -> None:
    own, held_out, negatives = list(cloud(0, 60, 0)), list(cloud(1, 5, 0)), list(cloud(2, 60, 1))
    once, again = fit_guard(own, held_out, negatives), fit_guard(own * times, held_out * times, negatives)
    assert once is not None
    assert again is not None
    assert again.least == once.least
    np.testing.assert_array_equal(again.direction_D, once.direction_D)
    assert fit_guard(own[: MIN_ROWS - 1] * times, [], negatives) is None


def test_a_widened_guard_knows_new_rows_and_all_that_it_knew() -> None:
    guard = fit_guard(list(cloud(0, 200, 0)), [], list(cloud(2, 60, 1)))
    assert guard is not None
    new = cloud(5, 100, 2)
    wider = widen_guard(guard, list(new))
    assert not guard.knows(new).any()
    assert wider.knows(new).sum() >= 99
    assert widen_guard(guard, list(cloud(0, 200, 0))[:1]).least <= guard.least
    near = np.stack([guard.centre_D + guard.direction_D])
    assert widen_guard(guard, list(near)).least == guard.least, "what it knows already changes nothing"


@pytest.mark.parametrize(("count", "num_negatives"), [(MIN_ROWS - 1, 60), (200, 0)])
def test_too_few_rows_give_none(count: int, num_negatives: int) -> None:
    assert fit_guard(list(cloud(0, count, 0)), [], list(cloud(2, num_negatives, 1))) is None


def test_own_rows_that_lie_where_the_negatives_do_give_none() -> None:
    same = list(cloud(0, 100, 0))
    assert fit_guard(same, [], same) is None
    assert fit_guard([same[0]] * 100, [], [same[0]] * 3) is None
