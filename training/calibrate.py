"""Chooses an expert's acceptance threshold from held-out scores. Knows no model, no tensors and no files."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

LOWEST, HIGHEST = 0.05, 0.95
TOLERANCE = 0.02


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
    """The threshold nearest to 0.5 whose balanced accuracy is within TOLERANCE of the best one's.

    A margin is logit(accept) - logit(reject); score = sigmoid(margin); accepted is score >= threshold. Training aims
    at 0.5, and queries in other wordings score less clearly than held-out rows do, so a few rows are no reason to move
    away from it. Where there is reason, the threshold is the middle of a gap between margins. It stays within
    [0.05, 0.95].
    """
    if not own_margins or not foreign_margins:
        raise ValueError("calibration needs held-out rows to accept and rows to reject")
    margins = sorted({*own_margins, *foreign_margins})
    edges = [margins[0] - 2.0, *margins, margins[-1] + 2.0]
    cuts = [0.0, *((low + high) / 2 for low, high in pairwise(edges))]
    judged = [(at_threshold(own_margins, foreign_margins, _bounded(sigmoid(cut))), abs(cut)) for cut in cuts]
    best = max(found.balanced_accuracy for found, _ in judged)
    good = [(distance, found) for found, distance in judged if found.balanced_accuracy >= best - TOLERANCE]
    return min(good, key=lambda candidate: candidate[0])[1]


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


def _bounded(threshold: float) -> float:
    return min(max(threshold, LOWEST), HIGHEST)


def _share(outcomes: Iterable[bool]) -> float:
    judged = list(outcomes)
    return sum(judged) / len(judged)
