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
MIN_ROWS = 50  # fewer would say too little: that a new row is less like them than any is a chance of one in N + 1


def fit_guard(own: Sequence[Vector], held_out: Sequence[Vector], negatives: Sequence[Vector]) -> Guard | None:
    """None for fewer than MIN_ROWS own rows that differ, or own rows that lie where the negatives do.

    Each own row is compared with the mean of the others, each held-out one with the mean of all; of either sort the
    guard leaves out LEFT_OUT at most. Equal rows count once: left out alone, one would be compared with its twins.
    """
    if not own or not negatives:
        return None
    own_ND = np.unique(np.stack(own), axis=0).astype(np.float64)
    centre_D, mean_D = np.stack(negatives).mean(axis=0, dtype=np.float64), own_ND.mean(axis=0)
    if len(own_ND) < MIN_ROWS:
        return None
    others_ND = (len(own_ND) * mean_D - own_ND) / (len(own_ND) - 1)
    if np.allclose(mean_D, centre_D) or np.isclose(others_ND, centre_D).all(axis=1).any():
        return None
    scores = [_cosines(own_ND - centre_D, others_ND - centre_D)]
    direction_D = mean_D - centre_D
    if held_out:
        scores.append(_cosines(np.unique(np.stack(held_out), axis=0) - centre_D, direction_D[None]))
    return Guard(
        centre_D=centre_D.astype(np.float32),
        direction_D=(direction_D / np.linalg.norm(direction_D)).astype(np.float32),
        least=min(map(_least, scores)),
    )


def widen_guard(guard: Guard, rows: Sequence[Vector]) -> Guard:
    """The same, but for LEFT_OUT at most it knows these rows too. At least one."""
    centre_D, direction_D = guard.centre_D.astype(np.float64), guard.direction_D.astype(np.float64)
    scores_N = _cosines(np.stack(rows) - centre_D, direction_D[None])
    return replace(guard, least=min(guard.least, _least(scores_N)))


def _least(scores_N: NDArray[np.float64]) -> float:
    """Rounded down: the server computes in fp32."""
    return max(-1.0, round(float(np.quantile(scores_N, LEFT_OUT, method="lower")) - 1e-6, 6))


def _cosines(a_ND: NDArray[np.float64], b_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row by row; `b_ND` may have one row for all."""
    lengths_N = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    found: NDArray[np.float64] = (a_ND * b_ND).sum(axis=1) / np.maximum(lengths_N, np.finfo(np.float64).tiny)
    return found
