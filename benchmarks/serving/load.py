"""Rounds of requests in a closed loop: as one answer ends the next request is sent. Counts and judges nothing."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from benchmarks.serving.client import Completed, Failed, complete
from benchmarks.serving.work import Job, Work, jobs

_TIMEOUT = httpx.Timeout(600.0, connect=10.0)


@dataclass(frozen=True)
class Side:
    """One of the servers that are compared, and the models it is asked for."""

    name: str
    url: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Round:
    """What one round came to."""

    seconds: float
    outcomes: tuple[Completed | Failed, ...]


async def run_rounds(
    sides: Sequence[Side], work: Work, *, concurrency: int, num_rounds: int, on_outcome: Callable[[], None]
) -> dict[str, list[Round]]:
    """Each side's rounds by its name. They take turns, A B A B; the first of each warms up and is left out."""
    rounds: dict[str, list[Round]] = {side.name: [] for side in sides}
    for number in range(num_rounds + 1):
        for side in sides:
            ran = await run_round(side.url, jobs(work, side.models, number), concurrency, on_outcome)
            if number > 0:
                rounds[side.name].append(ran)
    return rounds


async def run_round(url: str, todo: Sequence[Job], concurrency: int, on_outcome: Callable[[], None]) -> Round:
    """`concurrency` requests are under way until none is left to send."""
    waiting = iter(todo)
    outcomes: list[Completed | Failed] = []

    async def work_off(client: httpx.AsyncClient) -> None:
        for job in waiting:  # one iterator for all, so each job is taken once
            outcomes.append(await complete(client, job))
            on_outcome()

    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=_TIMEOUT) as client:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work_off(client))
        return Round(time.perf_counter() - started, tuple(outcomes))
