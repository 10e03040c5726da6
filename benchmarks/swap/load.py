"""Streams under way, in phases without swaps and with them. Swaps nothing itself."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from typing import Any

import httpx
import numpy as np
from rich.progress import Progress

from benchmarks.generation import Heard, Unheard, body, listen
from benchmarks.lifecycle import RouteFailed
from benchmarks.swap.known import MOVING, STEADY, Known
from benchmarks.swap.swapping import TIMEOUT, Swap, Swapper

_PAUSE_SECONDS = 0.1  # after a failure, so that a server that is gone is not asked in a tight loop


@dataclass(frozen=True)
class Phase:
    """A stretch of load. Gaps are between two pieces of a text, over all answers; `changed` are texts not as known,
    which says something in fp32 alone."""

    seconds: float
    answers: int
    failures: Mapping[str, int]
    changed: int
    tokens_per_second: float
    gap_p50: float
    gap_p95: float


@dataclass(frozen=True)
class Round:
    """A quiet phase, one with swaps right behind it, and the swaps."""

    quiet: Phase
    swapping: Phase
    swaps: Sequence[Swap]

    def ratio(self, figure: str) -> float:
        """While swapping, over what it was before."""
        ratio: float = getattr(self.swapping, figure) / getattr(self.quiet, figure)
        return ratio


@dataclass(frozen=True, kw_only=True)
class Load:
    """As many streams as `concurrency`, in phases of `seconds`: half of them ask for the moving expert by its name."""

    prompts: Sequence[str]
    max_tokens: int
    concurrency: int
    seconds: int

    async def run(self, swapper: Swapper, num_rounds: int, progress: Progress) -> list[Round]:
        """Raises RouteFailed."""
        asks = self._asks()
        rounds = []
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        async with httpx.AsyncClient(base_url=swapper.url, limits=limits, timeout=TIMEOUT) as client:

            async def phase(name: str) -> Phase:
                task = progress.add_task(f"{name}, seconds", total=self.seconds)

                def on_time(gone: float) -> None:
                    progress.update(task, completed=int(gone))

                ran = await run_phase(
                    client, asks, swapper.known, seconds=self.seconds, concurrency=self.concurrency, on_time=on_time
                )
                on_time(self.seconds)
                return ran

            for number in range(1, num_rounds + 1):
                quiet = await phase(f"quiet {number}")
                swapper.begin()
                try:
                    swapping = await phase(f"swapping {number}")
                finally:
                    swaps = await swapper.end()
                rounds.append(Round(quiet, swapping, swaps))
        return rounds

    def _asks(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        return (
            (number, body(ref, self.prompts[number], self.max_tokens))
            for number, ref in cycle(product(range(len(self.prompts)), (MOVING, f"{STEADY}@1")))
        )


async def run_phase(
    client: httpx.AsyncClient,
    asks: Iterator[tuple[int, Mapping[str, Any]]],
    known: Known,
    *,
    seconds: float,
    concurrency: int,
    on_time: Callable[[float], None],
) -> Phase:
    """Requests one after another in each of `concurrency` places; what runs when the time is over is heard out.

    An ask is the number of its prompt and the request's body.
    """
    started = time.perf_counter()
    heard: list[tuple[int, Heard]] = []
    failures: Counter[str] = Counter()

    async def keep_asking() -> None:
        while (gone := time.perf_counter() - started) < seconds:
            on_time(gone)
            prompt, request = next(asks)
            outcome = await listen(client, request)
            if isinstance(outcome, Unheard):
                failures[outcome.reason] += 1
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                heard.append((prompt, outcome))

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(keep_asking())
    return summarise(time.perf_counter() - started, heard, failures, known)


def summarise(seconds: float, heard: Sequence[tuple[int, Heard]], failures: Mapping[str, int], known: Known) -> Phase:
    """Raises RouteFailed where no text came at all."""
    gaps = [gap for _, one in heard for gap in one.gaps]
    if not gaps:
        raise RouteFailed(f"no text came in a phase of {seconds:.1f} s; failures: {dict(failures)}")
    p50, p95 = np.percentile(gaps, (50, 95))
    return Phase(
        seconds=seconds,
        answers=len(heard),
        failures=dict(failures),
        changed=sum(not known.is_as_known(one, prompt) for prompt, one in heard),
        tokens_per_second=sum(one.completion_tokens for _, one in heard) / seconds,
        gap_p50=float(p50),
        gap_p95=float(p95),
    )
