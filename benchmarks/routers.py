"""What do the routers make of the same requests, chosen per request on one server?

    python -m benchmarks.routers --store STORE --data DIR --label routers
    python -m benchmarks.routers --store STORE --data DIR --tasks sa,trans --own sa=sentiment --prompts input

STORE holds a pool that all three routers are ready for: experts that choose for themselves (chain), a base adapter and
experts with centroids (gradient), a trained router (learned). A server of its own serves a copy of it, without the
prefix cache, which would help whoever asks second; the chain does without guards. DIR holds TASK.train.jsonl and
TASK.eval.jsonl, as for `training.evaluate`, whose prompts and scores these are.

Held-out rows of all tasks, mixed at random, go to the server under each router and under none, in turns, --concurrency
at a time. Then each goes through a dry run of the chain with the other routers as shadows, which says how often the
same expert leads. Times are the server's, from a request's arrival; the other routers' requests run beside it.

Prints one table; --label also writes LABEL.json and LABEL.png to benchmarks/results/routers/. The exit status is 1
where a router is not ready or a request failed.
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import Progress

from benchmarks.command_line import add_base, label, options, positive, progress_bar, write_record
from benchmarks.copied_store import NotMeasurable, require_routers, server_over_copy
from benchmarks.routed_answers import (
    ROUTERS,
    SHADOWS,
    Agreed,
    Answered,
    Failed,
    Questions,
    ask_all,
    in_turns,
    mixed,
    own_experts,
)
from benchmarks.router_report import Line, line, plot, record, table
from server.environment import describe_run
from training.errors import TrainingError
from training.evaluate.budget import BUDGETS, Budget
from training.evaluate.stream import Sample, Task, read_settings

RESULTS = Path(__file__).parent / "results" / "routers"
_TIMEOUT = httpx.Timeout(600.0, connect=10.0)


@dataclass(frozen=True)
class Measured:
    """Everything one run heard, in the order it was asked; `own` names the expert of each task that has one."""

    answers: tuple[Answered, ...]
    shadows: tuple[Agreed, ...]
    failures: tuple[Failed, ...]
    own: Mapping[str, str]

    def lines(self) -> list[Line]:
        """One a router. Raises NotMeasurable where one answered nothing."""
        return [
            line(
                router,
                [answer for answer in self.answers if answer.router == router],
                [shadow for shadow in self.shadows if shadow.router == router],
                own=self.own,
                num_failed=sum(failure.router == router for failure in self.failures),
            )
            for router in ROUTERS
        ]


def main(arguments: Sequence[str] | None = None, *, results: Path = RESULTS) -> int:
    """The exit status."""
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    try:
        tasks = read_tasks(given)
        flags = ["--base", given.base, "--cache", str(given.cache), "--no-prefix-cache", *shlex.split(given.server)]
        with (
            server_over_copy(given.store, *flags) as server,
            httpx.Client(base_url=server.url, timeout=_TIMEOUT) as client,
            progress_bar(console) as progress,
        ):
            measured = measure(client, tasks, given, progress)
        lines = measured.lines()
    except (NotMeasurable, TrainingError, httpx.HTTPError) as error:
        console.print(f"{type(error).__name__}: {error}", style="red", markup=False)
        return 1
    console.print(table(lines, f"{given.requests} requests under each router, {given.concurrency} at a time"))
    for reason, times in Counter(failure.reason for failure in measured.failures).items():
        console.print(f"{times} x {reason}", markup=False)
    if given.label is not None:
        about = describe_run(shlex.join(["python", "-m", "benchmarks.routers", *given.arguments]))
        about |= {"options": options(given), "own": dict(measured.own)}
        write_record(results, given.label, record(about, lines, measured.answers, measured.failures), plot(lines))
    return int(bool(measured.failures))


def read_tasks(given: argparse.Namespace) -> tuple[Task, ...]:
    """With all their held-out rows, cut as the budget says. Raises InvalidData, InvalidRun."""
    whole = replace(_budget(given), rows=None, held_out=None)
    names = given.tasks or whole.tasks
    [setting] = read_settings(given.data, names, whole, prompts=[given.prompts], orders=[0], seeds=[given.seed])
    return setting.tasks


def measure(client: httpx.Client, tasks: Sequence[Task], given: argparse.Namespace, progress: Progress) -> Measured:
    """Raises NotMeasurable, httpx.HTTPError."""
    require_routers(client, ("chain", *SHADOWS))
    pool = [expert["name"] for expert in client.get("/experts").raise_for_status().json()["experts"]]
    own = own_experts([task.name for task in tasks], given.own, pool)
    questions = Questions(client, answer_tokens=_budget(given).answer_tokens)
    samples = mixed(tasks, given.requests, seed=given.seed)
    _warm_up(questions, [task.held_out[-1] for task in tasks])
    turns = in_turns(samples)
    answering = progress.add_task("answers", total=len(turns))
    heard = list(
        ask_all(
            lambda turn: questions.answer(*turn),
            turns,
            concurrency=given.concurrency,
            on_done=lambda: progress.advance(answering),
        )
    )
    shadowing = progress.add_task("shadows", total=len(samples))
    scored = list(
        ask_all(questions.shadows, samples, concurrency=given.concurrency, on_done=lambda: progress.advance(shadowing))
    )
    return Measured(
        answers=tuple(one for one in heard if isinstance(one, Answered)),
        shadows=tuple(shadow for one in scored if not isinstance(one, Failed) for shadow in one),
        failures=tuple(one for one in (*heard, *scored) if isinstance(one, Failed)),
        own=own,
    )


def _warm_up(questions: Questions, samples: Sequence[Sample]) -> None:
    """Every router answers a row of each task before anything counts, so that no expert is read from disk later."""
    for sample in samples:
        for router in ROUTERS:
            questions.answer(router, sample)


def _budget(given: argparse.Namespace) -> Budget:
    return BUDGETS[given.budget]


def _own(text: str) -> dict[str, str]:
    """task=expert,... as argparse wants its types. Raises ArgumentTypeError."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if any(not (task and expert) for task, _, expert in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not TASK=EXPERT,...")
    return {task: expert for task, _, expert in pairs}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routers", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--store", type=Path, required=True, help="an expert store; a copy of it is served")
    parser.add_argument("--data", type=Path, required=True, help="folder of TASK.train.jsonl and TASK.eval.jsonl")
    parser.add_argument("--tasks", type=lambda text: text.split(","), help="default: those of --budget")
    parser.add_argument("--prompts", choices=("definition", "input"), default="definition", help="default %(default)s")
    parser.add_argument(
        "--budget", choices=tuple(BUDGETS), default="small", help="of prompt and answer lengths; default %(default)s"
    )
    parser.add_argument(
        "--own", type=_own, default={}, metavar="TASK=EXPERT,...", help="default: experts called TASK or ...-TASK"
    )
    parser.add_argument("--requests", type=positive, default=500, help="under each router; default %(default)s")
    parser.add_argument("--concurrency", type=positive, default=8, help="requests under way; default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the mixture; default %(default)s")
    parser.add_argument("--server", default="", metavar="FLAGS", help='more of the server\'s, as "--dtype fp32"')
    add_base(parser)
    parser.add_argument("--label", type=label, help="write LABEL.json and LABEL.png to benchmarks/results/routers/")
    return parser.parse_args(arguments, argparse.Namespace(arguments=list(arguments)))


if __name__ == "__main__":
    sys.exit(main())
