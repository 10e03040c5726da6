"""Writes what a bench found: results.json, report.md, plots. Measures nothing."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
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
        "score since it was learned. Where there are several runs: mean ± standard deviation.",
        "",
    ]


def _sections(runs: Sequence[Run]) -> list[str]:
    lines: list[str] = []
    for prompts in dict.fromkeys(run.prompts for run in runs):
        chosen = [run for run in runs if run.prompts == prompts]
        lines += [f"## Prompts: {'definition and input' if prompts == 'definition' else 'input only'}", ""]
        lines += [*_summary(chosen), *_curves(chosen), *_tasks(chosen), *_routing(chosen)]
    return lines


def _by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {name: [run for run in runs if run.method == name] for name in dict.fromkeys(run.method for run in runs)}


def _summary(runs: Sequence[Run]) -> list[str]:
    columns = (
        ("AR", lambda run: run.ar),
        ("BWT", lambda run: run.bwt),
        ("exact", lambda run: run.exact_ar),
        ("routed right, %", lambda run: run.routing and run.routing.accuracy),
        ("unseen tasks left to the base, %", lambda run: run.routing and run.routing.fallback_unseen_tasks),
        ("first token, ms", lambda run: run.costs and run.costs.first_token_ms),
        ("tokens computed a request", lambda run: run.costs and run.costs.computed_tokens),
        ("of them prompt", lambda run: run.costs and run.costs.prompt_tokens),
        ("training, CPU s", lambda run: run.training_seconds),
    )
    rows = [
        [f"`{name}`", METHODS[name].about, str(len(found)), *(_spread(found, value) for _, value in columns)]
        for name, found in _by_method(runs).items()
    ]
    return _table(["method", "", "runs", *(title for title, _ in columns)], rows)


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
    """Confusion and fallback of the first run of every method that routes."""
    lines: list[str] = []
    for name, found in _by_method(runs).items():
        run = found[0]
        if run.routing is None:
            continue
        lines += [f"### Who answered: `{name}`, order {run.order}, seed {run.seed}", ""]
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
    found = [number for run in runs if (number := value(run)) is not None]
    if not found:
        return _NONE
    middle = f"{mean(found):.1f}"
    return middle if len(found) == 1 else f"{middle} ± {stdev(found):.1f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---"] * len(titles)
    return [*("| " + " | ".join(row) + " |" for row in (titles, ruler, *rows)), ""]
