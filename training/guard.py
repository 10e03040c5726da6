"""Finds from where on a prompt is unlike all that an expert was trained on. Knows vectors; no model and no files.

One class against the rest is not learned from the rest, since strangers come in more kinds than negatives show: the
own rows alone say how far they lie from each other, seen from where the negatives lie (a one-class test, as in novelty
detection). So an expert can leave alone what nobody taught it to reject.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from expert_store import Guard, Vector

# N own rows, K negatives, D width.
LEFT_OUT = 0.01  # of the own rows, those least like the others
MIN_ROWS = 50  # fewer would say too little: of one row in N + 1 it is chance that it is the least like the others


def fit_guard(own_ND: Sequence[Vector], held_out: Sequence[Vector], negatives_KD: Sequence[Vector]) -> Guard | None:
    """None for fewer than MIN_ROWS own rows, or own rows that lie where the negatives do.

    Each own row is compared with the mean of the others, each held-out one with the mean of all; of either sort the
    guard leaves out LEFT_OUT at most.
    """
    if len(own_ND) < MIN_ROWS or not negatives_KD:
        return None
    own, centre_D = np.stack(own_ND).astype(np.float64), np.stack(negatives_KD).mean(axis=0, dtype=np.float64)
    mean_D = own.mean(axis=0)
    others_ND = (len(own) * mean_D - own) / (len(own) - 1)
    if np.allclose(mean_D, centre_D) or np.isclose(others_ND, centre_D).all(axis=1).any():
        return None
    scores = [_cosines(own - centre_D, others_ND - centre_D)]
    if held_out:
        scores.append(_cosines(np.stack(held_out) - centre_D, (mean_D - centre_D)[None]))
    direction_D = mean_D - centre_D
    return Guard(
        centre_D=centre_D.astype(np.float32),
        direction_D=(direction_D / np.linalg.norm(direction_D)).astype(np.float32),
        least=min(map(_least, scores)),
    )


def widen_guard(guard: Guard, rows_ND: Sequence[Vector]) -> Guard:
    """The same, but for LEFT_OUT at most it knows these rows too. At least one."""
    centre_D, direction_D = guard.centre_D.astype(np.float64), guard.direction_D.astype(np.float64)
    scores_N = _cosines(np.stack(rows_ND) - centre_D, direction_D[None])
    return replace(guard, least=min(guard.least, _least(scores_N)))


def _least(scores_N: NDArray[np.float64]) -> float:
    """Rounded down, so that a row of this very score is known whatever it is computed in."""
    return max(-1.0, round(float(np.quantile(scores_N, LEFT_OUT, method="lower")) - 1e-6, 6))


def _cosines(a_ND: NDArray[np.float64], b_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row by row; `b_ND` may have one row for all."""
    lengths_N = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    found: NDArray[np.float64] = (a_ND * b_ND).sum(axis=1) / np.maximum(lengths_N, np.finfo(np.float64).tiny)
    return found
