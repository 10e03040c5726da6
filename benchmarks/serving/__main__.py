"""How fast does a server answer, alone or against a peer? Loads running servers; starts none.

    python -m benchmarks.serving --models sql,dates --concurrency 16
    python -m benchmarks.serving --models a,b --against http://127.0.0.1:8001 --against-name vllm --label against-vllm

Anything with OpenAI's /v1/completions will do: this server, vLLM, llama.cpp's. Prompts are random words, new in every
round and the same for both sides; answers are greedy, and each has all of --max-tokens or counts as failed. Tokens are
those of the server's own usage. One round of each side warms up; then they take turns.

Prints medians over the rounds with the lowest and the highest; --label also writes them, with every round and a plot,
to benchmarks/results/serving/. Activated experts need the chat template around the words:
--template $'<|im_start|>user\\n{}<|im_end|>\\n<|im_start|>assistant\\n'
"""

import argparse
import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.command_line import label, positive, two_or_more
from benchmarks.serving.load import Side, run_rounds
from benchmarks.serving.report import Measured, table, write
from benchmarks.serving.statistics import NothingMeasured, failures, figures
from benchmarks.serving.work import POPULARITIES, Work
from server.environment import describe_run

RESULTS = Path(__file__).parent.parent / "results" / "serving"
REQUESTS_PER_PLACE = 4


def main(arguments: Sequence[str] | None = None, *, results: Path = RESULTS) -> int:
    """The exit status: 1 where a request failed."""
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    try:
        sides = measure(given, console)
    except NothingMeasured as error:
        console.print(f"{error}", style="red", markup=False)
        return 1
    title = f"{given.requests} requests a round, {given.concurrency} at a time, {given.max_tokens} tokens each"
    console.print(table(sides, title))
    for measured in sides:
        for reason, count in measured.failures.items():
            console.print(f"{measured.side.name}: {count} x {reason}", markup=False)
    if given.label is not None:
        options = {name: value for name, value in vars(given).items() if name != "arguments"}
        about = describe_run(shlex.join(["python", "-m", "benchmarks.serving", *given.arguments]))
        write(sides, {**about, "options": options}, folder=results, label=given.label)
    return int(any(measured.failures for measured in sides))


def measure(given: argparse.Namespace, console: Console) -> list[Measured]:
    """Raises NothingMeasured."""
    sides = _sides(given)
    work = Work(
        num_requests=given.requests,
        prompt_words=given.prompt_words,
        max_tokens=given.max_tokens,
        popularity=given.popularity,
        template=given.template,
        seed=given.seed,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("requests", total=len(sides) * (given.rounds + 1) * given.requests)
        rounds = asyncio.run(
            run_rounds(
                sides,
                work,
                concurrency=given.concurrency,
                num_rounds=given.rounds,
                on_outcome=lambda: progress.advance(task),
            )
        )
    return [
        Measured(side, tuple(figures(ran) for ran in rounds[side.name]), failures(rounds[side.name])) for side in sides
    ]


def _sides(given: argparse.Namespace) -> list[Side]:
    ours = Side(given.name, given.url, given.models)
    if given.against is None:
        return [ours]
    return [ours, Side(given.against_name, given.against, given.against_models or given.models)]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="default %(default)s")
    parser.add_argument("--models", type=_names, required=True, help="ids of GET /v1/models, with commas between them")
    parser.add_argument("--name", default="relay", help="what to call this side; default %(default)s")
    parser.add_argument("--against", metavar="URL", help="a second server, whose rounds alternate with the first one's")
    parser.add_argument("--against-models", type=_names, help="as many as --models; default the same")
    parser.add_argument("--against-name", default="peer", help="default %(default)s")
    parser.add_argument("--concurrency", type=positive, default=16, help="requests under way; default %(default)s")
    parser.add_argument("--requests", type=positive, help=f"a round; default {REQUESTS_PER_PLACE} x concurrency")
    parser.add_argument("--rounds", type=positive, default=3, help="beside the one that warms up; default %(default)s")
    parser.add_argument("--prompt-words", type=positive, default=100, help="default %(default)s")
    parser.add_argument("--template", default="{}", help="the prompt, with {} for the words; default the words alone")
    parser.add_argument("--max-tokens", type=two_or_more, default=64, help="at least 2; default %(default)s")
    parser.add_argument("--popularity", choices=POPULARITIES, default="distinct", help="default %(default)s: in turn")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts; default %(default)s")
    parser.add_argument("--label", type=label, help="write LABEL.json and LABEL.png to benchmarks/results/serving/")
    given = parser.parse_args(arguments, argparse.Namespace(arguments=list(arguments)))
    given.requests = given.requests or REQUESTS_PER_PLACE * given.concurrency
    if "{}" not in given.template:
        parser.error("--template: there is no {} in it for the words")
    if given.against_models is not None and len(given.against_models) != len(given.models):
        parser.error("--against-models: name as many as --models, they are dealt alike")
    if given.against is not None and given.against_name == given.name:
        parser.error("--against-name: both sides have the same name")
    return given


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r}: names with commas between them, none of them empty")
    return names


if __name__ == "__main__":
    sys.exit(main())
