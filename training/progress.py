"""Shows a run on the terminal: step, loss, tokens a second, time left. Knows nothing of models, data or trainers."""

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SMOOTHING = 0.9
_PLAIN_EVERY_SECONDS = 15.0


class RunObserver(Protocol):
    """Told about a training run while it goes on."""

    def begin(self, *, done: int, total: int) -> None:
        """`done` of `total` steps were made before, by the run that is resumed. A run of several parts begins each."""

    def step(self, *, loss: float, tokens: int) -> None: ...


class TerminalProgress:
    """A live bar on a terminal, else one plain line now and then. A context manager, so that the bar always ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.0f} tokens/s  left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=None, loss=0.0, rate=0.0)
        self._loss: float | None = None
        self._tokens = self._steps = self._done = self._total = 0
        self._began = self._printed = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, *, done: int, total: int) -> None:
        self._began = self._printed = time.monotonic()
        self._loss, self._tokens, self._steps = None, 0, 0
        self._done, self._total = done, total
        self._bar.update(self._task, total=total, completed=done)
        self._bar.start()

    def step(self, *, loss: float, tokens: int) -> None:
        self._loss = loss if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        self._tokens += tokens
        self._steps += 1
        now = time.monotonic()
        rate = self._tokens / max(now - self._began, 1e-9)
        self._bar.update(self._task, advance=1, loss=self._loss, rate=rate)
        if not self._console.is_terminal and now - self._printed >= _PLAIN_EVERY_SECONDS:
            self._printed = now
            made = self._done + self._steps
            left = (self._total - made) * (now - self._began) / self._steps
            self._console.print(
                f"step {made}/{self._total}  loss {self._loss:.4f}  {rate:.0f} tokens/s  {left:.0f} s left",
                highlight=False,
            )
