"""How good are the demo experts, and does every request find its own? Asks a running server; trains nothing.

    python -m benchmarks.demo_experts [--url http://127.0.0.1:8000] [--rows 100] [--seed 1]
    python -m benchmarks.demo_experts --server "--dtype int8" --label demo_experts-int8

Held-out rows only: wordings, schemas, names and reviews that no expert saw in training, and prompts of no task at all.
Without --url it starts a server of its own with a fresh store. Prints the tables of docs/quality.md and writes
LABEL.json to benchmarks/results/.
"""

import argparse
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.command_line import label, options, write_record
from server.environment import describe_run
from server.own_server import own_server
from training.demo.tasks import TASKS, Row, general_rows, rows

RESULTS = Path(__file__).parent / "results"
CONCURRENCY = 8
NUM_GENERAL = 173
# The categories the acceptance text names; the rest of the general prompts are reported beside them.
NAMED_CATEGORIES = ("chit-chat", "arithmetic", "facts", "code_review", "poems")
BASE = "base"


@dataclass(frozen=True)
class Outcome:
    """One row's answers: by the chain, by its own expert when named, and by the base."""

    row: Row
    answered_by: str
    chain_text: str
    named_text: str
    base_text: str


@dataclass(frozen=True)
class TaskScore:
    """Shares of a task's rows. `routed` is the share the chain gave to the task's own expert."""

    task: str
    rows: int
    named_exact: float
    base_exact: float
    routed: float
    chain_exact: float


class Asker:
    """One server, asked greedily."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=600)

    def answer(self, prompt: str, **choice: Any) -> dict[str, Any]:
        response = self._client.post("/generate", json={"prompt": prompt, "max_new_tokens": 96, **choice})
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    def outcome(self, row: Row) -> Outcome:
        chain = self.answer(row.input)
        return Outcome(
            row=row,
            answered_by=chain["routing"]["expert"] or BASE,
            chain_text=chain["text"],
            named_text=self.answer(row.input, expert=row.task)["text"],
            base_text=self.answer(row.input, router="none")["text"],
        )

    def route(self, row: Row) -> str:
        response = self._client.post("/route", json={"prompt": row.input})
        response.raise_for_status()
        return response.json()["routing"]["expert"] or BASE


def score(task: str, outcomes: Sequence[Outcome]) -> TaskScore:
    """Exact match compares whole answers, only the white space around them aside."""

    def share(hit: Callable[[Outcome], bool]) -> float:
        return sum(map(hit, outcomes)) / len(outcomes)

    return TaskScore(
        task=task,
        rows=len(outcomes),
        named_exact=share(lambda o: o.named_text.strip() == o.row.output),
        base_exact=share(lambda o: o.base_text.strip() == o.row.output),
        routed=share(lambda o: o.answered_by == task),
        chain_exact=share(lambda o: o.chain_text.strip() == o.row.output),
    )


def ask_all(asker: Asker, num_rows: int, seed: int) -> tuple[list[Outcome], list[tuple[Row, str]]]:
    """Every held-out row of every task, and every general prompt, a few at a time."""
    asked = [row for task in TASKS for row in rows(task, num_rows, seed, held_out=True)]
    general = general_rows(NUM_GENERAL, seed, held_out=True)
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        outcomes = list(track(pool.map(asker.outcome, asked), "tasks", total=len(asked)))
        routes = list(track(pool.map(asker.route, general), "strangers", total=len(general)))
    return outcomes, list(zip(general, routes, strict=True))


def fallback_shares(general: Sequence[tuple[Row, str]]) -> dict[str, float]:
    """Category to the share of its prompts that fell back to the base."""
    by_category: dict[str, list[bool]] = {}
    for row, answered_by in general:
        category = row.id.removeprefix("general-eval-").rpartition("-")[0]
        by_category.setdefault(category, []).append(answered_by == BASE)
    named = [hit for category in NAMED_CATEGORIES for hit in by_category.get(category, [])]
    shares = {category: sum(hits) / len(hits) for category, hits in sorted(by_category.items())}
    return shares | {"all five named categories": sum(named) / len(named)}


def score_table(scores: Sequence[TaskScore]) -> Table:
    table = Table(
        "expert", "rows", "by name", "base", "routed to it", "through the chain", title="Exact match, held out"
    )
    for s in scores:
        shares = (s.named_exact, s.base_exact, s.routed, s.chain_exact)
        table.add_row(s.task, str(s.rows), *(f"{share:.3f}" for share in shares))
    return table


def confusion_table(outcomes: Sequence[Outcome]) -> Table:
    columns = [*TASKS, BASE]
    counts = Counter((outcome.row.task, outcome.answered_by) for outcome in outcomes)
    table = Table("task", *columns, title="Who answered")
    for task in TASKS:
        table.add_row(task, *(str(counts[task, column]) for column in columns))
    return table


def fallback_table(shares: dict[str, float]) -> Table:
    table = Table("prompts of no task", "fell back", title="Fallback to the base")
    for category, share in shares.items():
        table.add_row(category.replace("_", " "), f"{share:.3f}")
    return table


@contextmanager
def _server(url: str | None, flags: Sequence[str]) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory() as folder, own_server(Path(folder), *flags) as own:
        yield own.url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--url", help="a running server with the demo experts; else one is started")
    side.add_argument("--server", default="", metavar="FLAGS", help='of the one that is started, as "--dtype int8"')
    parser.add_argument("--rows", type=int, default=100, help="held-out rows a task")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--label", type=label, default="demo_experts", help="of the result file; default %(default)s")
    given = parser.parse_args()
    with _server(given.url, shlex.split(given.server)) as url:
        outcomes, general = ask_all(Asker(url), given.rows, given.seed)
    scores = [score(task, [o for o in outcomes if o.row.task == task]) for task in TASKS]
    shares = fallback_shares(general)
    accuracy = sum(o.answered_by == o.row.task for o in outcomes) / len(outcomes)
    console = Console()
    for table in (score_table(scores), confusion_table(outcomes), fallback_table(shares)):
        console.print(table)
    console.print(f"chain routing accuracy over the tasks: {accuracy:.3f}")
    result = {
        **describe_run(shlex.join(["python", "-m", "benchmarks.demo_experts", *sys.argv[1:]])),
        "options": options(given),
        "scores": [asdict(s) for s in scores],
        "routing_accuracy": accuracy,
        "fallback": shares,
        "errors": [_error(o) for o in outcomes if o.named_text.strip() != o.row.output or o.answered_by != o.row.task],
        "taken": [{"prompt": row.input, "by": by} for row, by in general if by != BASE],
    }
    write_record(RESULTS, given.label, result)


def _error(outcome: Outcome) -> dict[str, str]:
    return {
        "prompt": outcome.row.input,
        "expected": outcome.row.output,
        "named": outcome.named_text,
        "answered_by": outcome.answered_by,
    }


if __name__ == "__main__":
    main()
