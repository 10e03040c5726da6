"""Pieces of work that are done once: keyed by what decides their result, resumed where they were cut off, a few at a
time. Knows no methods and no server."""

import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.utils import logging

from server.model.base import Base, load_base
from training.errors import TrainingError

USUAL = "bfloat16 on cpu"  # not told in keys, which are older than the difference
_FORMAT = 1  # raised where the same inputs no longer give the same result
_DONE = "done.json"
_SPENT = "spent.json"
_NOTE_EVERY_SECONDS = 5.0
_IMPORTED = "training.evaluate.methods"  # imports whatever makes units


class UnitFailed(TrainingError):
    """A unit could not be made, through no fault of its own."""


@dataclass(frozen=True)
class BaseSource:
    """Where the base comes from, so that every process can load it; and in which number format, on which kind of
    device, it is trained on and served, which the same weights leave open."""

    source: str
    cache: Path
    device: str
    fingerprint: str
    trained_in: str = USUAL
    served_in: str = USUAL

    def load(self) -> Base:
        return load_base(self.source, device=self.device, cache=self.cache)


class Unit(Protocol):
    """One piece of work. Can be sent to another process.

    `identity` holds, as JSON, everything but base and parents that decides the result. `cost` is in trained tokens,
    roughly, for the progress bar.
    """

    @property
    def name(self) -> str: ...

    @property
    def parents(self) -> "Sequence[Unit]": ...

    @property
    def cost(self) -> int: ...

    def identity(self) -> Mapping[str, Any]: ...

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: "Spent") -> None:
        """Leaves the result in `folder`, which may hold what an interrupted run left; a result there is kept."""
        ...


class Spent:
    """CPU seconds that went into a unit, over all runs that worked on it; also the observer of its training."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _SPENT
        self._before = float(json.loads(self._path.read_text())) if self._path.exists() else 0.0
        self._began = time.process_time()
        self._noted = time.monotonic()

    def begin(self, *, done: int, total: int) -> None: ...

    def step(self, *, loss: float, tokens: int) -> None:  # noqa: ARG002 - the observer's signature
        if time.monotonic() - self._noted > _NOTE_EVERY_SECONDS:
            self._noted = time.monotonic()
            _write(self._path, json.dumps(self.seconds()))

    def seconds(self) -> float:
        return self._before + time.process_time() - self._began


class Workshop:
    """The folder where units lie, one folder each."""

    def __init__(self, work: Path, base: BaseSource) -> None:
        self._units = work / "units"
        self._base = base
        self._keys: dict[int, tuple[Unit, str]] = {}

    @property
    def served_base(self) -> str:
        """What answers depend on beside the units."""
        base = self._base
        return base.fingerprint if base.served_in == USUAL else f"{base.fingerprint} in {base.served_in}"

    def key(self, unit: Unit) -> str:
        """A digest of everything that decides the unit's result; equal keys are the same unit."""
        known = self._keys.get(id(unit))
        if known is None:
            parents = [self.key(parent) for parent in unit.parents]
            identity = {"unit": type(unit).__name__, "base": self._base.fingerprint, "format": _FORMAT}
            if self._base.trained_in != USUAL:
                identity["in"] = self._base.trained_in
            text = json.dumps({**identity, **unit.identity(), "parents": parents}, sort_keys=True)
            known = unit, hashlib.sha256(text.encode()).hexdigest()[:16]
            self._keys[id(unit)] = known
        return known[1]

    def folder(self, unit: Unit) -> Path:
        return self._units / f"{unit.name}-{self.key(unit)}"

    def is_done(self, unit: Unit) -> bool:
        return (self.folder(unit) / _DONE).exists()

    def seconds(self, unit: Unit) -> float:
        """CPU seconds the unit took; it must be done."""
        return float(json.loads((self.folder(unit) / _DONE).read_text())["seconds"])

    def with_parents(self, units: Iterable[Unit]) -> list[Unit]:
        """All that has to be done for these, each once, parents first."""
        found: dict[Path, Unit] = {}

        def visit(unit: Unit) -> None:
            if self.folder(unit) not in found:
                for parent in unit.parents:
                    visit(parent)
                found[self.folder(unit)] = unit

        for unit in units:
            visit(unit)
        return list(found.values())

    def run(self, units: Iterable[Unit], executor: Executor, *, on_done: Callable[[Unit], None]) -> None:
        """Makes all that is missing, parents before children, as many at a time as the executor takes.

        What fails ends the run once the units at work have ended; those that are done stay done.
        """
        waiting = [unit for unit in self.with_parents(units) if not self.is_done(unit)]
        working: dict[Future[None], Unit] = {}
        while waiting or working:
            ready = [unit for unit in waiting if all(self.is_done(parent) for parent in unit.parents)]
            for unit in ready:
                waiting.remove(unit)
                parents = [self.folder(parent) for parent in unit.parents]
                working[executor.submit(_make, unit, self._base, parents, self.folder(unit))] = unit
            if not working:
                names = ", ".join(sorted({unit.name for unit in waiting}))
                raise UnitFailed(f"{names}: what they start from was removed meanwhile; the same command makes it anew")
            finished, _ = wait(working, return_when=FIRST_COMPLETED)
            try:
                for future in finished:
                    future.result()
                    on_done(working.pop(future))
            except BrokenProcessPool as error:
                raise UnitFailed(
                    f"a training process was ended from outside, for want of memory perhaps (each takes up to 4 GB): "
                    f"free some or say --jobs {max(1, len(working) - 1)}; what is done is kept"
                ) from error
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise


def processes(count: int) -> ProcessPoolExecutor:
    """Where units are made: so many at a time, each in a process of its own with one thread, so that nothing of one
    stays in memory while the next is made. They begin as copies of one that has imported everything, where the system
    can do that: imports take as long as a small unit."""
    if "forkserver" in get_all_start_methods():
        context: BaseContext = get_context("forkserver")
        context.set_forkserver_preload([_IMPORTED])
    else:
        context = get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_set_up_process, max_tasks_per_child=1)


def _set_up_process() -> None:
    """One thread, and nothing on the terminal, which several share: failures come back as exceptions. Whatever ends the
    run ends this process with it, which would otherwise compute on for nobody."""
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.simplefilter("ignore")


def _end_with_the_run() -> None:
    run = parent_process()
    assert run is not None, "this is a process of its own. This is a bug."
    run.join()
    os._exit(1)


def _make(unit: Unit, base: BaseSource, parents: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    spent = Spent(folder)
    unit.make(base, parents, folder, spent)
    _write(folder / _DONE, json.dumps({"seconds": spent.seconds(), **unit.identity()}, indent=1, sort_keys=True))


def _write(path: Path, text: str) -> None:
    writing = path.with_suffix(".writing")
    writing.write_text(text)
    os.replace(writing, path)
