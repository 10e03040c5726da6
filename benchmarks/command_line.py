"""What the benchmarks' commands share: kinds of arguments, the progress bar, the result file. Measures nothing."""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

CACHE = Path("~/.cache/lora-relay").expanduser()


def positive(text: str) -> int:
    """A count, as argparse wants its types. Raises ArgumentTypeError."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def two_or_more(text: str) -> int:
    """So many tokens that there is a time between two of them. Raises ArgumentTypeError."""
    if positive(text) < 2:
        raise argparse.ArgumentTypeError("one token has no time between tokens, ask for 2 or more")
    return int(text)


def label(text: str) -> str:
    """What result files are called. Raises ArgumentTypeError."""
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no plain file name")
    return text


def add_base(parser: argparse.ArgumentParser) -> None:
    """--base and --cache, as the server has them."""
    parser.add_argument("--base", default="bundled", help="default %(default)s")
    parser.add_argument("--cache", type=Path, default=CACHE, help="of the converted base; default %(default)s")


def options(given: argparse.Namespace) -> dict[str, str]:
    """What a result file says of the options, the defaults among them, but not where on this machine the converted base
    lies. `arguments` is how they were typed."""
    return {name: str(value) for name, value in vars(given).items() if name not in ("arguments", "cache")}


def progress_bar(console: Console) -> Progress:
    """Description, bar, steps done, time gone and time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def write_record(folder: Path, name: str, record: Mapping[str, Any], plot: Figure | None = None) -> None:
    """NAME.json, and NAME.png where there is a plot."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / f"{name}.json").write_text(text + "\n")
    if plot is not None:
        plot.savefig(folder / f"{name}.png", dpi=120)
