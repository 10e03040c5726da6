"""The stream of tasks: its rows, their prompts, its order, and what no expert may have seen. Knows no method.

--data is a folder of TASK.train.jsonl and TASK.eval.jsonl, rows {"id", "definition", "input", "output"};
Super-NaturalInstructions v2 is public and has this shape.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.data import Row, read_record, split_lines
from training.demo.tasks import general_rows
from training.errors import InvalidData, InvalidRun
from training.evaluate.budget import Budget

PromptKind = Literal["definition", "input"]
GENERAL = "general"
_GENERAL_HELD_OUT = 40
_GAP = " ... "


@dataclass(frozen=True)
class Sample:
    """One row as the models see it; ids are unique over all tasks."""

    id: str
    task: str
    prompt: str
    output: str

    def as_row(self, line: int) -> Row:
        return Row(self.id, self.prompt, self.output, line)


@dataclass(frozen=True)
class Task:
    """What is trained on and what is asked; the two have no prompt in common."""

    name: str
    train: tuple[Sample, ...]
    held_out: tuple[Sample, ...]


@dataclass(frozen=True)
class Setting:
    """One run of the stream: tasks in the order they arrive, kind of prompt, seed.

    `general` are prompts of no task, for negatives. `strangers` come from tasks outside the stream and from prompts of
    no task in wordings that `general` lacks.
    """

    tasks: tuple[Task, ...]
    general: tuple[Sample, ...]
    strangers: tuple[Sample, ...]
    prompts: PromptKind
    order: int
    seed: int
    budget: Budget

    def memory(self, before: int, *, at_least: int = 1) -> tuple[Sample, ...]:
        """The rehearsal share of every task before the one at this place, drawn with the seed; `at_least` so many rows
        each, as far as there are."""
        kept: list[Sample] = []
        for task in self.tasks[:before]:
            share = round(self.budget.memory_share * len(task.train))
            count = min(len(task.train), max(at_least, share))
            kept += random.Random(f"memory {self.seed} {task.name}").sample(task.train, count)
        return tuple(kept)


def read_settings(
    data: Path,
    names: Sequence[str],
    budget: Budget,
    *,
    prompts: Sequence[PromptKind],
    orders: Sequence[int],
    seeds: Sequence[int],
) -> list[Setting]:
    """Every combination. Order 0 is that of `names`, order n a shuffle seeded by n. Raises InvalidData, InvalidRun."""
    there = sorted(path.name.removesuffix(".train.jsonl") for path in data.glob("*.train.jsonl"))
    unknown = [name for name in names if name not in there]
    if unknown or len(set(names)) != len(names):
        raise InvalidRun(f"--tasks {','.join(names)}: {data} has {', '.join(there) or 'no *.train.jsonl'}, each once")
    settings = []
    for kind in prompts:
        tasks = {name: _read_task(data, name, budget, kind) for name in there}
        outside = [s for name in there if name not in names for s in tasks[name].held_out[: budget.strangers]]
        for order in orders:
            arriving = tuple(tasks[name] for name in _ordered(names, order))
            for seed in seeds:
                general = _general(budget.general, seed, held_out=False)
                unheard = _general(_GENERAL_HELD_OUT, seed, held_out=True)
                settings.append(Setting(arriving, general, (*outside, *unheard), kind, order, seed, budget))
    return settings


def digest_samples(samples: Iterable[Sample]) -> str:
    """sha256 over everything a model sees of them, in order."""
    content = json.dumps([(s.id, s.prompt, s.output) for s in samples])
    return hashlib.sha256(content.encode()).hexdigest()


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters: what is longer loses its middle, since questions stand at either end."""
    if len(text) <= limit:
        return text
    half = (limit - len(_GAP)) // 2
    head, tail = text[:half], text[-half:]
    return head.rpartition(" ")[0] + _GAP + tail.partition(" ")[2] if " " in head and " " in tail else text[:limit]


def _ordered(names: Sequence[str], order: int) -> list[str]:
    arriving = list(names)
    if order:
        random.Random(f"order {order}").shuffle(arriving)
    return arriving


def _read_task(data: Path, name: str, budget: Budget, kind: PromptKind) -> Task:
    train = _read(data / f"{name}.train.jsonl", name, budget, kind, at_most=budget.rows)
    known = {sample.prompt for sample in train}
    held_out = _read(data / f"{name}.eval.jsonl", name, budget, kind, at_most=None)
    asked = [sample for sample in held_out if sample.prompt not in known]
    if not asked:
        raise InvalidRun(f"{data / name}.eval.jsonl: each of its rows is a training row as well")
    return Task(name, train, tuple(asked[: budget.held_out]))


def _read(path: Path, task: str, budget: Budget, kind: PromptKind, *, at_most: int | None) -> tuple[Sample, ...]:
    try:
        lines = split_lines(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(path, [(None, f"cannot be read as UTF-8 text: {error}")]) from error
    found: dict[str, Sample] = {}
    problems: list[tuple[int | None, str]] = []
    for number, line in enumerate(lines, start=1):
        sample = _sample(line, task, budget, kind)
        if isinstance(sample, str):
            problems.append((number, sample))
        elif sample.id in found:
            problems.append((number, f"id {sample.id!r} is used twice"))
        else:
            found[sample.id] = sample
    if problems or not found:
        raise InvalidData(path, problems or [(None, "the file is empty")])
    distinct = {sample.prompt: sample for sample in reversed(found.values())}
    return tuple(reversed(distinct.values()))[:at_most]


def _sample(line: str, task: str, budget: Budget, kind: PromptKind) -> Sample | str:
    """The sample, or the reason why it is none."""
    try:
        record = read_record(line)
    except ValueError as error:
        return str(error)
    fields = ("id", "definition", "input", "output")
    if any(not isinstance(record.get(field), str) for field in fields):
        return f"needs the strings {', '.join(fields)}"
    if not record["input"].strip() or not record["output"].strip():
        return "input or output is empty"
    prompt = shorten(record["input"].strip(), budget.input_chars)
    if kind == "definition":
        prompt = f"{shorten(record['definition'].strip(), budget.definition_chars)}\n\n{prompt}"
    return Sample(f"{task}/{record['id']}", task, prompt, record["output"].strip())


def _general(count: int, seed: int, *, held_out: bool) -> tuple[Sample, ...]:
    rows = general_rows(count, seed, held_out=held_out)
    return tuple(Sample(f"{GENERAL}/{row.id}", GENERAL, row.input, "") for row in rows)
