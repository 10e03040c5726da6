"""Retrains the demo experts with the SEE recipe. Knows their data and settings; the recipe knows everything else.

python -m training.demo --out expert_store/demo          all five, half an hour to two hours each on one core
python -m training.demo --out expert_store/demo sql      one of them
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from expert_store import ADAPTER_FILES, MANIFEST_FILE
from server.model.base import BUNDLED, load_base
from training.commands import default_cache
from training.demo.task import Row
from training.demo.tasks import TASKS, general_rows, rows
from training.progress import TerminalProgress
from training.see import SeeOptions, train_see
from training.selection import About, read_data


@dataclass(frozen=True)
class Recipe:
    """How one demo expert is trained: its kind and how many rows of what.

    Runs over so many own rows each of `more`, with the others in proportion, follow: each starts from the one before,
    learns at half the first one's rate, and is averaged with what it began with, which has the weight `average`.
    """

    kind: Literal["alora", "lora"] = "alora"
    own: int = 1500
    others: int = 60  # of each other task
    general: int = 500
    alpha: float | None = 16.0
    learning_rate: float = 3e-3
    more: tuple[int, ...] = ()
    average: float = 0.0

    def run(self, number: int) -> "Recipe":
        """What the run of that number is: the first, or one of `more`."""
        if number == 0:
            return self
        own = self.more[number - 1]
        return replace(
            self,
            own=own,
            others=round(self.others * own / self.own),
            general=round(self.general * own / self.own),
            learning_rate=self.learning_rate / 2,
        )


RECIPES = {
    "dates": Recipe(own=4000, others=80, general=700),
    "contacts": Recipe(own=9000, others=120, general=900),
    "sql": Recipe(own=9000, others=100, general=800, more=(5000,)),
    "logs": Recipe(own=9000, others=120, general=900, more=(5000, 9000, 6000), average=0.5),
    "sentiment": Recipe(kind="lora", own=2400, others=60, general=600, alpha=None, more=(2000,)),
}
SEED = 0
RANK = 4  # on all linear layers of the bundled base: 2.5 MB
BATCH_SIZE = 8


def train_demo(task: str, recipe: Recipe, *, runs: Path, out: Path, base: str, cache: Path) -> None:
    """Trains in `runs`, resuming a run that was cut off there, then replaces `out/<task>`."""
    result = None
    for number in range(len(recipe.more) + 1):
        work = runs / (f"{task}-{number}" if number else task)
        result = _run(task, recipe.run(number), SEED + number, work, base=base, cache=cache, start=result)
    assert result is not None, "there is a first run. This is a bug."
    folder = out / task
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*ADAPTER_FILES, MANIFEST_FILE):
        shutil.copyfile(result / name, folder / f"{name}.new")
        os.replace(folder / f"{name}.new", folder / name)


def _run(task: str, recipe: Recipe, seed: int, work: Path, *, base: str, cache: Path, start: Path | None) -> Path:
    """One run over rows of its own, its result in `work`; nothing is done where that is there already."""
    if (work / MANIFEST_FILE).exists():
        return work
    own, *negatives = _write_data(task, recipe, seed, work.parent / "data" / work.name)
    options = SeeOptions(
        kind=recipe.kind,
        rank=RANK,
        average=recipe.average if start is not None else 0.0,
        alpha=recipe.alpha,
        batch_size=BATCH_SIZE,
        learning_rate=recipe.learning_rate,
        seed=seed,
    )
    demo = TASKS[task]
    about = About(task, demo.description, demo.samples[:4], f"python -m training.demo --out DIR {task}")
    with TerminalProgress(Console()) as progress:
        train_see(
            load_base(base, cache=cache),
            read_data(own, negatives, answers=True, held_out_own=None, held_out_negatives=None),
            options,
            about,
            out=work,
            resume=True,
            observer=progress,
            start=start,
        )
    return work


def _write_data(task: str, recipe: Recipe, seed: int, folder: Path) -> list[Path]:
    """The expert's own rows, the other tasks' and the general ones."""
    folder.mkdir(parents=True, exist_ok=True)
    others = [row for name in TASKS if name != task for row in rows(name, recipe.others, seed, held_out=False)]
    files = {
        "own": rows(task, recipe.own, seed, held_out=False),
        "others": others,
        "general": general_rows(recipe.general, seed, held_out=False),
    }
    return [_write(folder / f"{name}.jsonl", found) for name, found in files.items()]


def _write(path: Path, found: Iterable[Row]) -> Path:
    lines = [json.dumps({"id": r.id, "input": r.input, "output": r.output}, ensure_ascii=False) for r in found]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.demo", description="Retrain the demo experts.")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(RECIPES)}; all if none is named")
    parser.add_argument("--out", type=Path, required=True, help="gets one folder an expert")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/demo"),
        help="data, checkpoints, finished and unfinished runs; remove it to train anew",
    )
    parser.add_argument("--base", default=BUNDLED)
    given = parser.parse_args(argv)
    unknown = [task for task in given.tasks if task not in RECIPES]
    if unknown:
        parser.error(f"no such demo expert: {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    for task in given.tasks or RECIPES:
        print(f"== {task}", flush=True)
        train_demo(task, RECIPES[task], runs=given.runs, out=given.out, base=given.base, cache=default_cache())


if __name__ == "__main__":
    main()
