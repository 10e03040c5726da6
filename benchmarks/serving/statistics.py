"""Rounds to figures: percentiles of requests, medians of rounds, ratios of neighbours. Knows no servers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median

import numpy as np

from benchmarks.serving.client import Completed, Failed
from benchmarks.serving.load import Round


class NothingMeasured(Exception):
    """Not one request of a round was answered."""


@dataclass(frozen=True)
class Figures:
    """One round. Percentiles are over requests; times are seconds."""

    tokens_per_second: float
    first_token_p50: float
    first_token_p95: float
    inter_token_p50: float
    inter_token_p95: float


FIGURES = tuple(field.name for field in fields(Figures))


@dataclass(frozen=True)
class Spread:
    """What a figure was over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))

    def text(self, *, scale: float = 1.0, digits: int = 2) -> str:
        """The median, with the lowest and the highest behind it."""
        low, middle, high = (f"{value * scale:.{digits}f}" for value in (self.low, self.median, self.high))
        return f"{middle} ({low}–{high})"


def figures(ran: Round) -> Figures:
    """Raises NothingMeasured."""
    completed = [outcome for outcome in ran.outcomes if isinstance(outcome, Completed)]
    if not completed:
        raise NothingMeasured(f"every request failed: {dict(failures([ran]))}")
    first = np.percentile([outcome.first_token for outcome in completed], (50, 95))
    inter = np.percentile([outcome.inter_token for outcome in completed], (50, 95))
    return Figures(
        tokens_per_second=sum(outcome.completion_tokens for outcome in completed) / ran.seconds,
        first_token_p50=float(first[0]),
        first_token_p95=float(first[1]),
        inter_token_p50=float(inter[0]),
        inter_token_p95=float(inter[1]),
    )


def summarise(rounds: Sequence[Figures]) -> dict[str, Spread]:
    """Each figure over the rounds."""
    return {name: Spread.of([getattr(one, name) for one in rounds]) for name in FIGURES}


def ratios(ours: Sequence[Figures], theirs: Sequence[Figures]) -> dict[str, Spread]:
    """Each figure as ours / theirs, round by round: neighbours in time share the machine's moods."""
    pairs = list(zip(ours, theirs, strict=True))
    return {name: Spread.of([getattr(a, name) / getattr(b, name) for a, b in pairs]) for name in FIGURES}


def failures(rounds: Sequence[Round]) -> Mapping[str, int]:
    """Why requests failed, and how many."""
    return Counter(outcome.reason for ran in rounds for outcome in ran.outcomes if isinstance(outcome, Failed))
