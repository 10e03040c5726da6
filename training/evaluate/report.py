"""Writes what a bench found: results.json, report.md, plots. Measures nothing."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from training.evaluate.bench import Run
from training.evaluate.methods import METHODS
from training.evaluate.plots import plot_all

RESULTS, REPORT = "results.json", "report.md"
_NONE = "–"


def write_report(out: Path, head: dict[str, Any], runs: Sequence[Run]) -> None:
    """`head` says where, when and how; it opens both files."""
    out.mkdir(parents=True, exist_ok=True)
    record = {**head, "runs": [asdict(run) for run in runs]}
    (out / RESULTS).write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    plots = plot_all(out, runs)
    (out / REPORT).write_text("\n".join([*_head(head), *_sections(runs), *_pictures(plots)]) + "\n")


def _head(head: dict[str, Any]) -> list[str]:
    machine = ", ".join(f"{name} {value}" for name, value in head["machine"].items())
    return [
        "# The continual-learning bench",
        "",
        f"`{head['command']}`",
        "",
        f"{head['date']}, commit {head['commit']}; {machine}. Scores are ROUGE-L in percent on held-out rows, greedy "
        "answers of the serving engine. AR is the mean over tasks after the last one; BWT the mean change of a task's "
        "score since it was learned. Where there are several runs: mean ± standard deviation. *never*: the method's "
        "router has no way to leave a prompt to the base; –: there is nothing to choose, or nothing was measured.",
        "",
    ]


def _sections(runs: Sequence[Run]) -> list[str]:
    lines: list[str] = []
    for prompts in dict.fromkeys(run.prompts for run in runs):
        chosen = [run for run in runs if run.prompts == prompts]
        lines += [f"## Prompts: {'definition and input' if prompts == 'definition' else 'input only'}", ""]
        lines += [*_summary(chosen), *_ranges(chosen), *_kinds(chosen)]
        lines += [*_curves(chosen), *_tasks(chosen), *_routing(chosen)]
    return lines


def _by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {name: [run for run in runs if run.method == name] for name in dict.fromkeys(run.method for run in runs)}


@dataclass(frozen=True)
class _Column:
    """One number of a run; None is one it does not have."""

    title: str
    of: Callable[[Run], float | None]

    def cell(self, runs: Sequence[Run], spread: Callable[[Sequence[float]], str]) -> str:
        found = [number for run in runs if (number := self.of(run)) is not None]
        if not found and self is _FALLBACK and METHODS[runs[0].method].always_answers:
            return "never"
        return spread(found) if found else _NONE


_AR = _Column("AR", lambda run: run.ar)
_BWT = _Column("BWT", lambda run: run.bwt)
_EXACT = _Column("exact", lambda run: run.exact_ar)
_ACCURACY = _Column("routed right, %", lambda run: run.routing.accuracy if run.routing else None)
_FALLBACK = _Column(
    "unseen tasks left to the base, %", lambda run: run.routing.fallback_unseen_tasks if run.routing else None
)
_FIRST_TOKEN = _Column("first token, ms", lambda run: run.costs.first_token_ms if run.costs else None)
_COMPUTED = _Column("tokens computed a request", lambda run: run.costs.computed_tokens if run.costs else None)
_PROMPT = _Column("of them prompt", lambda run: run.costs.prompt_tokens if run.costs else None)
_TRAINING = _Column("training, CPU s", lambda run: run.training_seconds)


def _summary(runs: Sequence[Run]) -> list[str]:
    columns = (_AR, _BWT, _EXACT, _ACCURACY, _FALLBACK, _FIRST_TOKEN, _COMPUTED, _PROMPT, _TRAINING)
    rows = [
        [f"`{name}`", METHODS[name].about, str(len(found)), *(column.cell(found, _deviation) for column in columns)]
        for name, found in _by_method(runs).items()
    ]
    return _table(["method", "", "runs", *(column.title for column in columns)], rows)


def _ranges(runs: Sequence[Run]) -> list[str]:
    """How far orders and seeds lie apart, for every method that was run in several."""
    columns = (_AR, _BWT, _ACCURACY, _FALLBACK)
    rows = [
        [
            f"`{name}`",
            ", ".join(map(str, sorted({run.order for run in found}))),
            ", ".join(map(str, sorted({run.seed for run in found}))),
            *(column.cell(found, _range) for column in columns),
        ]
        for name, found in _by_method(runs).items()
        if len(found) > 1
    ]
    if not rows:
        return []
    titles = ["method", "orders", "seeds", *(column.title for column in columns)]
    return ["### Over orders and seeds: mean (least to most)", "", *_table(titles, rows)]


_KINDS = {
    "see": ("plain", "oracle"),
    "see-alora": ("activated", "oracle-alora"),
    "see-late": ("activated, woken at the indicator", "oracle-late"),
    "gates": ("plain, asked through gates", "oracle-isolated"),
}
_KINDS |= {f"{name}-guard": (f"{kind}; guarded", by_name) for name, (kind, by_name) in _KINDS.items()}


def _kinds(runs: Sequence[Run]) -> list[str]:
    """The kinds of experts a chain can have, side by side, each with its experts by name where they were run."""
    columns = (_AR, _ACCURACY, _FALLBACK, _FIRST_TOKEN, _COMPUTED, _TRAINING)
    by_method = _by_method(runs)
    rows = []
    for name, (kind, named) in _KINDS.items():
        if found := by_method.get(name):
            by_name = _AR.cell(by_method[named], _deviation) if named in by_method else _NONE
            cells = [column.cell(found, _deviation) for column in columns]
            rows.append([kind, f"`{name}`", cells[0], by_name, *cells[1:]])
    if len(rows) < 2:
        return []
    titles = ["experts", "method", _AR.title, "AR by name", *(column.title for column in columns[1:])]
    return ["### Kinds of experts in the chain", "", *_table(titles, rows)]


def _curves(runs: Sequence[Run]) -> list[str]:
    """The forgetting curve: mean score over the tasks learned so far."""
    length = max(len(run.tasks) for run in runs)
    rows = [
        [f"`{name}`", *(_spread(found, lambda run, at=at: run.curve[at]) for at in range(length))]  # type: ignore[misc]
        for name, found in _by_method(runs).items()
    ]
    return [
        "### Over the tasks learned so far, after each",
        "",
        *_table(["after task", *map(str, range(1, length + 1))], rows),
    ]


def _tasks(runs: Sequence[Run]) -> list[str]:
    """After the last task, each task; exact match in parentheses."""
    tasks = sorted({task for run in runs for task in run.tasks})

    def cell(found: Sequence[Run], task: str) -> str:
        rouge, matches = (_spread(found, lambda run, of=of: _final(run, of, task)) for of in ("rouge", "exact"))  # type: ignore[misc]
        return f"{rouge} ({matches})"

    rows = [[f"`{name}`", *(cell(found, task) for task in tasks)] for name, found in _by_method(runs).items()]
    return ["### Every task after the last: ROUGE-L (exact match)", "", *_table(["method", *tasks], rows)]


def _final(run: Run, scores: str, task: str) -> float:
    found: float = getattr(run, scores)[-1][run.tasks.index(task)]
    return found


def _routing(runs: Sequence[Run]) -> list[str]:
    """Confusion and fallback of every run whose method routes; of a mixture, by the largest weight."""
    lines: list[str] = []
    for run in (run for found in _by_method(runs).values() for run in found):
        if run.routing is None:
            continue
        lines += [f"### Who answered: `{run.method}`, order {run.order}, seed {run.seed}", ""]
        counts = [[task, *map(str, row)] for task, row in zip(run.tasks, run.routing.confusion, strict=True)]
        lines += _table(["task", *run.routing.columns], counts)
        if run.routing.fallback is not None:
            shares = run.routing.fallback
            lines += ["Strangers left to the base, %, by where they come from:", ""]
            lines += _table(list(shares), [[f"{share:.1f}" for share in shares.values()]])
    return lines


def _pictures(plots: Sequence[Path]) -> list[str]:
    return ["## Plots", "", *(f"![{path.stem}]({path.name})" for path in plots)]


def _spread(runs: Sequence[Run], value: Callable[[Run], float | None]) -> str:
    return _Column("", value).cell(runs, _deviation)


def _deviation(numbers: Sequence[float]) -> str:
    middle = f"{mean(numbers):.1f}"
    return middle if len(numbers) == 1 else f"{middle} ± {stdev(numbers):.1f}"


def _range(numbers: Sequence[float]) -> str:
    return f"{mean(numbers):.1f} ({min(numbers):.1f} to {max(numbers):.1f})"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---"] * len(titles)
    return [*("| " + " | ".join(row) + " |" for row in (titles, ruler, *rows)), ""]
