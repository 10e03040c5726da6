"""The five demo tasks, their rows, and a command that writes them; knows nothing of models or training.

python -m training.demo.tasks --out DIR --train 1500 --eval 150 --seed 0
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random

from training.demo import contacts, dates, general, logs, sentiment, sql
from training.demo.task import DemoTask, Row

__all__ = ["TASKS", "DemoTask", "Row", "general_rows", "main", "rows"]

TASKS: dict[str, DemoTask] = {task.TASK.name: task.TASK for task in (dates, contacts, sql, logs, sentiment)}
MAX_INPUT_CHARS = 330
_MAX_MISSES = 2000


def rows(task: str, count: int, seed: int, held_out: bool) -> list[Row]:
    """`count` rows with distinct inputs; the same arguments give the same rows."""
    demo = TASKS[task]
    split = "eval" if held_out else "train"
    drawn = _distinct(lambda rng: demo.generate(rng, held_out=held_out), count, Random(f"{task}/{split}/{seed}"))
    return [Row(f"{task}-{split}-{i}", task, text, output) for i, (text, output) in enumerate(drawn)]


def general_rows(count: int, seed: int, held_out: bool) -> list[Row]:
    """Prompts of no task, their output empty; the id names the category."""
    split = "eval" if held_out else "train"

    def draw(rng: Random) -> tuple[str, str]:
        category, text = general.generate(rng, held_out=held_out)
        return text, category.replace(" ", "_")

    drawn = _distinct(draw, count, Random(f"general/{split}/{seed}"))
    return [Row(f"general-{split}-{category}-{i}", "general", text, "") for i, (text, category) in enumerate(drawn)]


def _distinct(draw: Callable[[Random], tuple[str, str]], count: int, rng: Random) -> list[tuple[str, str]]:
    """Draws until `count` pairs differ in their input; over-long inputs are drawn again."""
    kept: dict[str, str] = {}
    misses = 0
    while len(kept) < count:
        text, second = draw(rng)
        if text in kept or not text.strip() or len(text) > MAX_INPUT_CHARS:
            misses += 1
            if misses > _MAX_MISSES + 10 * count:
                raise ValueError(f"only {len(kept)} distinct rows exist where {count} were asked for: ask for fewer")
            continue
        kept[text] = second
    return list(kept.items())


def _write(path: Path, lines: Iterable[Row]) -> None:
    keys = ("id", "input", "output")
    text = "".join(json.dumps({k: getattr(row, k) for k in keys}, ensure_ascii=False) + "\n" for row in lines)
    path.write_text(text, encoding="utf-8")


def write_all(out: Path, train: int, held_out: int, seed: int) -> None:
    """Writes NAME.train.jsonl and NAME.eval.jsonl for the five tasks and the general prompts."""
    out.mkdir(parents=True, exist_ok=True)
    for suffix, count, held in (("train", train, False), ("eval", held_out, True)):
        for name in TASKS:
            _write(out / f"{name}.{suffix}.jsonl", rows(name, count, seed, held))
        _write(out / f"general.{suffix}.jsonl", general_rows(count, seed, held))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.demo.tasks", description="Write the demo rows.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .jsonl files")
    parser.add_argument("--train", type=int, default=1500, help="training rows a task")
    parser.add_argument("--eval", type=int, default=150, dest="held_out", help="evaluation rows a task")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    write_all(given.out, given.train, given.held_out, given.seed)


if __name__ == "__main__":
    main()
