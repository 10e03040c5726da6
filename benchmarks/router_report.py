"""A run under several routers for people and for the record: figures, one table, a JSON file, a plot. Asks nobody."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.copied_store import NotMeasurable
from benchmarks.routed_answers import Agreed, Answered, Failed
from server.routing import RouterName


@dataclass(frozen=True)
class Times:
    """Milliseconds, over requests."""

    p50: float
    p95: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Times":
        p50, p95 = np.percentile(values, (50, 95))
        return cls(float(p50), float(p95))


@dataclass(frozen=True)
class Line:
    """One router's figures. Scores in percent, shares from 0 to 1; `by_experts` leaves out the pool's fallback expert.

    `own` is over the rows whose own expert the router looked at in this run (`own_rows`); None where it saw no task's.
    `agreed` is how often the expert that leads, scored beside the chain, is the chain's; None for the chain itself.
    """

    router: RouterName
    answers: int
    failed: int
    rouge_l: float
    rouge_l_by_task: Mapping[str, float]
    exact: float
    by_experts: float
    fallback: float
    own: float | None
    own_rows: int
    agreed: float | None
    routing_ms: Times
    shadow_ms: Times | None
    first_token_ms: Times
    total_ms: Times
    computed_tokens: float


def line(
    router: RouterName,
    answers: Sequence[Answered],
    shadows: Sequence[Agreed],
    *,
    own: Mapping[str, str],
    num_failed: int,
) -> Line:
    """All of one router's. Raises NotMeasurable where it answered nothing."""
    if not answers:
        raise NotMeasurable(f"none of the {num_failed} requests under router {router} was answered")
    seen = frozenset[str]().union(*(answer.seen for answer in answers))
    owned = [answer for answer in answers if own.get(answer.task) in seen]
    said = [shadow for shadow in shadows if shadow.agreed is not None]
    return Line(
        router=router,
        answers=len(answers),
        failed=num_failed,
        rouge_l=mean(answer.rouge_l for answer in answers),
        rouge_l_by_task=_by_task(answers),
        exact=mean(answer.exact for answer in answers),
        by_experts=mean(answer.leader is not None and not answer.fallback for answer in answers),
        fallback=mean(answer.fallback for answer in answers),
        own=mean(answer.leader == own[answer.task] for answer in owned) if owned else None,
        own_rows=len(owned),
        agreed=mean(bool(shadow.agreed) for shadow in said) if said else None,
        routing_ms=Times.of([answer.routing_ms for answer in answers]),
        shadow_ms=Times.of([shadow.ms for shadow in said]) if said else None,
        first_token_ms=Times.of([answer.first_token_ms for answer in answers]),
        total_ms=Times.of([answer.total_ms for answer in answers]),
        computed_tokens=mean(answer.computed_tokens for answer in answers),
    )


def table(lines: Sequence[Line], title: str) -> Table:
    """A column for each router."""
    shown = Table("", *(one.router for one in lines), title=title)
    shown.add_row("ROUGE-L", *(f"{one.rouge_l:.1f}" for one in lines))
    for task in sorted({task for one in lines for task in one.rouge_l_by_task}):
        shown.add_row(f"  {task}", *(_number(one.rouge_l_by_task.get(task), 1) for one in lines))
    shown.add_row("exact match, %", *(f"{one.exact:.1f}" for one in lines))
    shown.add_row("answered by experts", *(f"{one.by_experts:.3f}" for one in lines))
    shown.add_row("fell back", *(f"{one.fallback:.3f}" for one in lines))
    shown.add_row("led by the task's own expert", *(_number(one.own, 3) for one in lines))
    shown.add_row("led by the chain's expert", *(_number(one.agreed, 3) for one in lines))
    for name, times in (
        ("routing p50/p95, ms", [one.routing_ms for one in lines]),
        ("as a shadow p50/p95, ms", [one.shadow_ms for one in lines]),
        ("first token p50/p95, ms", [one.first_token_ms for one in lines]),
        ("total p50/p95, ms", [one.total_ms for one in lines]),
    ):
        shown.add_row(name, *("–" if one is None else f"{one.p50:.0f} / {one.p95:.0f}" for one in times))
    shown.add_row("computed tokens a request", *(f"{one.computed_tokens:.0f}" for one in lines))
    shown.add_row("failed requests", *(str(one.failed) for one in lines))
    return shown


def record(
    about: Mapping[str, Any], lines: Sequence[Line], answers: Sequence[Answered], failures: Sequence[Failed]
) -> dict[str, Any]:
    """The figures, and every single answer's scores and times."""
    return {
        **about,
        "routers": [asdict(one) for one in lines],
        "failures": [asdict(failure) for failure in failures],
        "answers": [asdict(answer) | {"seen": sorted(answer.seen)} for answer in answers],
    }


def plot(lines: Sequence[Line]) -> Figure:
    """Scores by task beside times."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    scores, times = figure.subplots(1, 2)
    tasks = sorted({task for one in lines for task in one.rouge_l_by_task})
    width = 0.8 / len(lines)
    for place, one in enumerate(lines):
        offset = (place - (len(lines) - 1) / 2) * width
        heights = [one.rouge_l, *(one.rouge_l_by_task.get(task, 0.0) for task in tasks)]
        scores.bar(np.arange(len(heights)) + offset, heights, width, label=one.router)
        marks = [one.first_token_ms.p50, one.first_token_ms.p95, one.total_ms.p50, one.total_ms.p95]
        times.bar(np.arange(len(marks)) + offset, marks, width, label=one.router)
    scores.set_xticks(range(1 + len(tasks)), ["all", *tasks])
    scores.set_title("ROUGE-L")
    times.set_xticks(range(4), ["first token p50", "first token p95", "total p50", "total p95"])
    times.set_yscale("log")
    times.set_title("milliseconds")
    scores.legend()
    return figure


def _by_task(answers: Sequence[Answered]) -> dict[str, float]:
    tasks = sorted({answer.task for answer in answers})
    return {task: mean(answer.rouge_l for answer in answers if answer.task == task) for task in tasks}


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
