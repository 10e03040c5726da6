"""Registers and swaps experts, and times that. Knows nothing of the streams meanwhile."""

import asyncio
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from threading import Event

import httpx

from benchmarks.lifecycle import Lifecycle, RouteFailed
from benchmarks.swap.known import MOVING, Known

FRESH = "fresh"
ROUTABLE_SECONDS = 30.0  # for a dry run to show what was registered
TIMEOUT = httpx.Timeout(120.0, connect=10.0)


@dataclass(frozen=True)
class Registration:
    """Seconds from sending the files to the 201, and to the end of the dry run that shows the expert."""

    registered: float
    routable: float


@dataclass(frozen=True)
class Swap:
    """A new version in the place of the old one; `failure` says what went wrong."""

    seconds: float
    failure: str | None


def time_registration(lifecycle: Lifecycle, adapter: int, *, patience: float = ROUTABLE_SECONDS) -> Registration:
    """Leaves nothing behind. Raises RouteFailed when no dry run shows the expert within `patience` seconds."""
    started = time.perf_counter()
    version = lifecycle.register(FRESH, adapter)
    registered = time.perf_counter() - started
    while f"{FRESH}@{version}" not in lifecycle.asked("Is this yours?"):
        if time.perf_counter() - started > patience:
            raise RouteFailed(f"{FRESH}@{version} was registered, and no dry run has asked it for {patience} s")
    routable = time.perf_counter() - started
    lifecycle.retire(FRESH, version)
    return Registration(registered, routable)


def swap_once(lifecycle: Lifecycle, known: Known, live: int, adapter: int) -> tuple[Swap, int]:
    """What came of it, and the version that is live from now on."""
    started = time.perf_counter()
    failure = None
    try:
        version = lifecycle.register(MOVING, adapter, activate=False)
        known.adapter_of[f"{MOVING}@{version}"] = adapter
        lifecycle.move(MOVING, version)
        live, old = version, live
        lifecycle.delete(MOVING, old)
    except (RouteFailed, httpx.HTTPError) as error:
        failure = f"swap: {type(error).__name__}: {error}"
    return Swap(time.perf_counter() - started, failure), live


def swap_steadily(
    lifecycle: Lifecycle, known: Known, live: int, adapters: Iterator[int], *, period: float, stop: Event
) -> tuple[list[Swap], int]:
    """Until told to stop; also returns the version that is live then. One that takes longer than the period delays the
    next; none is made up for."""
    swaps = []
    due = time.monotonic() + period
    while not stop.wait(max(0.0, due - time.monotonic())):
        due = max(due + period, time.monotonic())
        swap, live = swap_once(lifecycle, known, live, next(adapters))
        swaps.append(swap)
    return swaps, live


@dataclass
class Swapper:
    """Swaps between `begin` and `end`, in a process of its own. `live` is the moving expert's version."""

    url: str
    adapters: Sequence[Path]
    known: Known
    live: int
    period: float
    process: ProcessPoolExecutor
    stop: Event
    _swapping: "Future[tuple[list[Swap], int]] | None" = None

    def begin(self) -> None:
        self.stop.clear()
        self._swapping = self.process.submit(
            _swap_from_outside, self.url, self.adapters, self.known, self.live, period=self.period, stop=self.stop
        )

    async def end(self) -> list[Swap]:
        """Waits for the last one."""
        assert self._swapping is not None, "it ends before it began. This is a bug."
        self.stop.set()
        swaps, self.live = await asyncio.wrap_future(self._swapping)
        return swaps


@contextmanager
def swapper(url: str, adapters: Sequence[Path], known: Known, live: int, *, period: float) -> Iterator[Swapper]:
    """Its process has started and imported everything; what it learns `known` knows as well."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(1, mp_context=spawn) as process:
        known.adapter_of = manager.dict(known.adapter_of)
        process.submit(_begun).result()
        yield Swapper(url, adapters, known, live, period, process, manager.Event())


def _begun() -> bool:
    """For a process to have been started and to know this module."""
    return True


def _swap_from_outside(
    url: str, adapters: Sequence[Path], known: Known, live: int, *, period: float, stop: Event
) -> tuple[list[Swap], int]:
    """`swap_steadily` for a process of its own."""
    with httpx.Client(base_url=url, timeout=TIMEOUT) as client:
        lifecycle = Lifecycle(client, adapters)
        return swap_steadily(lifecycle, known, live, cycle(range(len(adapters))), period=period, stop=stop)
