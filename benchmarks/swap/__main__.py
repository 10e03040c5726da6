"""How fast is a new expert there, and what do swaps under load cost those who are being answered?

    python -m benchmarks.swap --label swap
    python -m benchmarks.swap --dtype fp32 --label texts

Starts a server of its own. First, on an idle server, registers random experts over HTTP, one at a time: seconds until
the 201, and until a dry run of the chain shows the expert among those asked.

Then streaming requests run, as many as --concurrency, for --seconds without a change and for as long again while once a
--period a new version of one expert is registered, its alias moves, and the old version is deleted; in turns, for
--rounds, as one round says little on a machine that has its moods. Whoever swaps is a process of its own, so that
putting an upload together does not hold up the clock of the streams. Half of the requests ask for that expert by its
bare name, half for a version of another one. What every version answers to every prompt is known beforehand, each asked
alone: an answer under swaps must be that of the version it says it is from. As prompts repeat for that, the prefix
cache is off. Only fp32 can be judged so: in bf16 rounding depends on the batch, and random experts are often in two
minds. The times between two pieces of text are compared with those of the quiet phase before.

Prints tables; --label also writes LABEL.json to benchmarks/results/swap/. The exit status is 1 where a request or a
swap failed or a text changed.
"""

import argparse
import asyncio
import random
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import Progress

from benchmarks.command_line import add_base, label, options, positive, progress_bar, two_or_more, write_record
from benchmarks.lifecycle import Lifecycle, RouteFailed
from benchmarks.serving.work import WORDS
from benchmarks.swap.known import learn
from benchmarks.swap.load import Load, Round
from benchmarks.swap.report import phase_table, record, registration_table
from benchmarks.swap.swapping import TIMEOUT, Registration, swapper, time_registration
from benchmarks.synthetic_experts import Shape, all_linears, write_synthetic
from server.environment import describe_run
from server.model.base import load_base
from server.model.chat import ChatFormat
from server.own_server import own_server

RESULTS = Path(__file__).parent.parent / "results" / "swap"
EXACT = "fp32"  # the number format in which a text does not depend on the batch


def main(arguments: Sequence[str] | None = None, *, results: Path = RESULTS) -> int:
    """The exit status."""
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        adapters = _write_adapters(Path(folder), given)
        with (
            own_server(Path(folder), *_flags(given)) as server,
            httpx.Client(base_url=server.url, timeout=TIMEOUT) as client,
            progress_bar(console) as progress,
        ):
            lifecycle = Lifecycle(client, adapters)
            try:
                registrations = _time_registrations(lifecycle, given, progress)
                rounds = _load(server.url, lifecycle, adapters, given, progress)
            except (RouteFailed, httpx.HTTPError) as error:
                console.print(f"{type(error).__name__}: {error}", style="red", markup=False)
                return 1
    for table in (registration_table(registrations, given.rank), phase_table(rounds, exact=given.dtype == EXACT)):
        console.print(table)
    phases = [phase for one in rounds for phase in (one.quiet, one.swapping)]
    reasons = Counter(swap.failure for one in rounds for swap in one.swaps if swap.failure)
    for phase in phases:
        reasons += Counter(phase.failures)
    for reason, times in reasons.items():
        console.print(f"{times} x {reason}", markup=False)
    if given.label is not None:
        about = describe_run(shlex.join(["python", "-m", "benchmarks.swap", *given.arguments]))
        about["options"] = options(given)
        write_record(results, given.label, record(about, registrations, rounds))
    return int(bool(reasons) or (given.dtype == EXACT and any(phase.changed for phase in phases)))


def _time_registrations(lifecycle: Lifecycle, given: argparse.Namespace, progress: Progress) -> list[Registration]:
    """One at a time, each gone again before the next."""
    task = progress.add_task("registrations", total=given.registrations)
    timed = []
    for number in range(given.registrations):
        timed.append(time_registration(lifecycle, number % given.adapters))
        progress.advance(task)
    return timed


def _load(
    url: str, lifecycle: Lifecycle, adapters: Sequence[Path], given: argparse.Namespace, progress: Progress
) -> list[Round]:
    rng = random.Random(given.seed)
    prompts = [" ".join(rng.choices(WORDS, k=given.prompt_words)) for _ in range(given.prompts)]
    known, live = learn(lifecycle, prompts, progress, num_adapters=given.adapters, max_tokens=given.max_tokens)
    load = Load(prompts=prompts, max_tokens=given.max_tokens, concurrency=given.concurrency, seconds=given.seconds)
    with swapper(url, adapters, known, live, period=given.period) as swapping:
        return asyncio.run(load.run(swapping, given.rounds, progress))


def _write_adapters(folder: Path, given: argparse.Namespace) -> list[Path]:
    base = load_base(given.base, cache=given.cache)
    shape = Shape(given.rank, all_linears(base.spec), ChatFormat(base.tokenizer).generation_prompt)
    adapters = [folder / f"adapter-{number}" for number in range(given.adapters)]
    for seed, adapter in enumerate(adapters):
        adapter.mkdir()
        write_synthetic(adapter, base.spec, shape, seed=seed)
    return adapters


def _flags(given: argparse.Namespace) -> list[str]:
    return ["--base", given.base, "--cache", str(given.cache), "--dtype", given.dtype, "--no-demo", "--no-prefix-cache"]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.swap", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "--registrations", type=positive, default=15, help="timed on the idle server; default %(default)s"
    )
    parser.add_argument("--rank", type=positive, default=16, help="of the experts; default %(default)s")
    parser.add_argument("--adapters", type=positive, default=3, help="that versions are made of; default %(default)s")
    parser.add_argument("--rounds", type=positive, default=3, help="of two phases each; default %(default)s")
    parser.add_argument("--seconds", type=positive, default=60, help="of each phase; default %(default)s")
    parser.add_argument("--period", type=float, default=1.0, help="seconds from swap to swap; default %(default)s")
    parser.add_argument("--concurrency", type=positive, default=8, help="streams under way; default %(default)s")
    parser.add_argument("--prompts", type=positive, default=4, help="different ones; default %(default)s")
    parser.add_argument("--prompt-words", type=positive, default=50, help="default %(default)s")
    parser.add_argument("--max-tokens", type=two_or_more, default=48, help="at least 2; default %(default)s")
    parser.add_argument(
        "--dtype", choices=("auto", "bf16", EXACT), default="auto", help="the server's; default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the prompts; default %(default)s")
    add_base(parser)
    parser.add_argument("--label", type=label, help="write LABEL.json to benchmarks/results/swap/")
    given = parser.parse_args(arguments, argparse.Namespace(arguments=list(arguments)))
    if given.period <= 0:
        parser.error("--period: above 0")
    return given


if __name__ == "__main__":
    sys.exit(main())
