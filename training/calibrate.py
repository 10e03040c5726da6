"""Chooses an expert's acceptance threshold from held-out scores. Knows no model, no tensors and no files."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

LOWEST, HIGHEST = 0.05, 0.95


@dataclass(frozen=True)
class Calibration:
    """The threshold and what it does to the scores it was chosen from."""

    threshold: float
    accept_rate: float
    reject_rate: float

    @property
    def balanced_accuracy(self) -> float:
        return (self.accept_rate + self.reject_rate) / 2


def calibrate(own_margins: Sequence[float], foreign_margins: Sequence[float]) -> Calibration:
    """The threshold with the best balanced accuracy, in the middle of the widest gap that reaches it.

    A margin is logit(accept) - logit(reject); score = sigmoid(margin); accepted is score >= threshold. Gaps are
    measured between margins, where the scores are not squeezed together, and the outermost gaps reach one unit
    beyond the last margin. The threshold stays within [0.05, 0.95], so that a sure expert still has to be sure.
    """
    if not own_margins or not foreign_margins:
        raise ValueError("calibration needs held-out rows to accept and rows to reject")
    margins = sorted({*own_margins, *foreign_margins})
    edges = [margins[0] - 2.0, *margins, margins[-1] + 2.0]
    gaps = list(pairwise(edges))
    best = max(gaps, key=lambda gap: (_balanced(own_margins, foreign_margins, sum(gap) / 2), gap[1] - gap[0]))
    threshold = min(max(sigmoid(sum(best) / 2), LOWEST), HIGHEST)
    return at_threshold(own_margins, foreign_margins, threshold)


def at_threshold(own_margins: Sequence[float], foreign_margins: Sequence[float], threshold: float) -> Calibration:
    """What a given threshold does to the scores."""
    return Calibration(
        threshold=threshold,
        accept_rate=_share(sigmoid(m) >= threshold for m in own_margins),
        reject_rate=_share(sigmoid(m) < threshold for m in foreign_margins),
    )


def sigmoid(margin: float) -> float:
    if margin < 0:
        power = math.exp(max(margin, -700.0))
        return power / (1.0 + power)
    return 1.0 / (1.0 + math.exp(-margin))


def _balanced(own: Sequence[float], foreign: Sequence[float], cut: float) -> float:
    return (_share(m >= cut for m in own) + _share(m < cut for m in foreign)) / 2


def _share(outcomes: Iterable[bool]) -> float:
    judged = list(outcomes)
    return sum(judged) / len(judged)
