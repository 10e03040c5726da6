"""The bench's command line: options to settings, errors to messages.

    python -m training.evaluate --data DIR --out DIR [--methods see,oracle,base] [--budget small]

DIR holds TASK.train.jsonl and TASK.eval.jsonl with rows {"id", "definition", "input", "output"}; tasks of DIR outside
the stream are the unseen ones. What is done lies in --work and is not done again, so that an interrupted run goes on
with the same command and a larger one builds on a smaller.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers.utils import logging

from server.environment import describe_run
from server.errors import RelayError
from server.model.base import BUNDLED, choose_dtype, load_base
from server.model.fused import fusible
from server.model.native import load_kernels
from training.commands import default_cache
from training.errors import InvalidRun, TrainingError
from training.evaluate.asking import Book, questioner
from training.evaluate.bench import ask, lay_out, train
from training.evaluate.budget import BUDGETS, Budget
from training.evaluate.methods import METHODS
from training.evaluate.report import REPORT, write_report
from training.evaluate.stream import read_settings
from training.evaluate.units import BaseSource, Workshop, processes

_console = Console(stderr=True)
_PROMPTS = ("definition", "input")


class TerminalBar:
    """A bar with the time left; on what is no terminal, a line for each tenth."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._what, self._made, self._total, self._told = "", 0, 1, 0

    def begin(self, what: str, total: int) -> None:
        self._what, self._made, self._total, self._told = what, 0, max(total, 1), 0
        self._bar.start()
        self._task = self._bar.add_task(what, total=self._total)

    def advance(self, amount: int) -> None:
        assert self._task is not None, "advanced before it began. This is a bug."
        self._bar.advance(self._task, amount)
        self._made += amount
        tenth = 10 * self._made // self._total
        if not self._console.is_terminal and tenth > self._told:
            self._told = tenth
            self._console.print(f"{self._what}: {10 * tenth}%", highlight=False)

    def end(self) -> None:
        self._bar.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    try:
        _bench(given, list(sys.argv[1:] if arguments is None else arguments))
    except (TrainingError, RelayError) as error:
        _console.print(error.message, style="red", markup=False, highlight=False)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        _console.print("interrupted: the same command goes on from here")
        raise SystemExit(130) from None


def _bench(given: argparse.Namespace, typed: Sequence[str]) -> None:
    methods = list(METHODS) if given.methods == ["all"] else given.methods
    if unknown := [name for name in methods if name not in METHODS]:
        raise InvalidRun(f"--methods {','.join(unknown)}: there are {', '.join(METHODS)}, or all")
    if unknown := [kind for kind in given.prompts if kind not in _PROMPTS]:
        raise InvalidRun(f"--prompts {','.join(unknown)}: there are {', '.join(_PROMPTS)}")
    budget = _budget(given)
    settings = read_settings(
        given.data,
        given.tasks or list(budget.tasks),
        budget,
        prompts=given.prompts,
        orders=given.orders,
        seeds=given.seeds,
    )
    work: Path = given.work or given.out / "work"
    base = _source(given)
    workshop = Workshop(work, base)
    courses = lay_out(methods, settings)
    bar = TerminalBar(_console)
    try:
        with processes(given.jobs) as executor:
            train(courses, workshop, executor, bar)
        book = Book(work / "answers.jsonl")
        runs = ask(courses, workshop, lambda cache: questioner(base, workshop, book, prefix_cache=cache), bar)
    finally:
        bar.end()
    command = shlex.join(["python", "-m", "training.evaluate", *typed])
    options = {name: str(value) for name, value in vars(given).items() if name != "cache"}  # a place on this machine
    write_report(given.out, {**describe_run(command), "options": options, "base": base.fingerprint}, runs)
    _console.print(f"{given.out / REPORT}", highlight=False)


def _budget(given: argparse.Namespace) -> Budget:
    changed = {"rows": given.rows, "held_out": given.eval_rows, "epochs": given.epochs}
    return replace(BUDGETS[given.budget], **{name: value for name, value in changed.items() if value is not None})


def _source(given: argparse.Namespace) -> BaseSource:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded = load_base(given.base, device=given.device, cache=given.cache)
    kernels = load_kernels(given.cache) if loaded.device.type == "cpu" else None
    with_kernels = kernels is not None and fusible(loaded.model.config)
    trained, served = loaded.dtype, choose_dtype("auto", loaded.device, with_kernels=with_kernels)
    return BaseSource(
        given.base,
        given.cache,
        given.device,
        loaded.spec.fingerprint,
        *(f"{str(dtype).removeprefix('torch.')} on {loaded.device.type}" for dtype in (trained, served)),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__, formatter_class=_Plain)
    parser.add_argument("--data", type=Path, required=True, help="folder of TASK.train.jsonl and TASK.eval.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, report.md and plots")
    parser.add_argument("--work", type=Path, help="folder of what is trained and answered (default: --out/work)")
    parser.add_argument("--methods", type=_names, default=["all"], help=f"of {', '.join(METHODS)}; default all")
    parser.add_argument("--tasks", type=_names, help="the stream, in order (default: the budget's)")
    parser.add_argument(
        "--orders", type=_numbers, default=[0], help="0 is as given, n a shuffle seeded by n; default 0"
    )
    parser.add_argument("--seeds", type=_numbers, default=[0], help="with commas; default 0")
    parser.add_argument("--prompts", type=_names, default=["definition"], help="definition, input, or both")
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="small")
    parser.add_argument("--rows", type=_positive, help="training rows a task, instead of the budget's")
    parser.add_argument("--eval-rows", type=_positive, help="rows asked of each task, instead of the budget's")
    parser.add_argument("--epochs", type=_positive, help="instead of the budget's")
    parser.add_argument("--jobs", type=_positive, default=2, help="training processes, of one thread each; default 2")
    parser.add_argument("--base", default=BUNDLED, help="default %(default)s")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="of the converted base")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser


class _Plain(argparse.RawDescriptionHelpFormatter):
    """The description as it is written."""


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{min(numbers)} is less than 0")
    return list(dict.fromkeys(numbers))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


if __name__ == "__main__":
    main()
