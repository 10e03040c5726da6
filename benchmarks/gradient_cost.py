"""What do gradient features cost requests that need none? Streams on the base, quiet and while features are computed.

    python -m benchmarks.gradient_cost --store STORE --label gradient_cost

STORE holds a pool that the gradient router is ready for; a copy of it is served. --streams streams run on the base
model, each beginning the next as soon as one has ended. In every round they have --seconds by themselves, then as long
beside a client that asks the gradient router for one dry run after the other, so that there is always a
feature, a forward and a backward pass, under way. The times between two pieces of text are compared, loaded against
quiet, round by round.

Prints a table; --label also writes LABEL.json to benchmarks/results/gradient_cost/. The exit status is 1 where the
router is not ready or a request failed.
"""

import argparse
import asyncio
import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import add_base, label, options, positive, progress_bar, two_or_more, write_record
from benchmarks.copied_store import NotMeasurable, require_routers, server_over_copy
from benchmarks.generation import Heard, Unheard, listen
from benchmarks.serving.statistics import Spread
from benchmarks.serving.work import WORDS
from server.environment import describe_run

RESULTS = Path(__file__).parent / "results" / "gradient_cost"
_TIMEOUT = httpx.Timeout(120.0, connect=10.0)
_PAUSE_SECONDS = 0.1  # after a failure, so that a server that is gone is not asked in a tight loop


@dataclass(frozen=True)
class Phase:
    """A stretch of streams. Gaps are seconds between two pieces of a text, `features` seconds of each dry run beside
    them; there are none in a quiet phase."""

    seconds: float
    tokens_per_second: float
    gap_p50: float
    gap_p95: float
    features: tuple[float, ...]
    failures: Mapping[str, int]


def main(arguments: Sequence[str] | None = None, *, results: Path = RESULTS) -> int:
    """The exit status."""
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    flags = ["--base", given.base, "--cache", str(given.cache), "--no-prefix-cache", *shlex.split(given.server)]
    try:
        with server_over_copy(given.store, *flags) as server:
            with httpx.Client(base_url=server.url, timeout=_TIMEOUT) as client:
                require_routers(client, ("gradient",))
            rounds = asyncio.run(measure(server.url, given, console))
    except (NotMeasurable, httpx.HTTPError) as error:
        console.print(f"{type(error).__name__}: {error}", style="red", markup=False)
        return 1
    console.print(table(rounds, f"{given.streams} streams on the base, {given.rounds} rounds"))
    failures = sum((Counter(phase.failures) for pair in rounds for phase in pair), Counter[str]())
    for reason, times in failures.items():
        console.print(f"{times} x {reason}", markup=False)
    if given.label is not None:
        about = describe_run(shlex.join(["python", "-m", "benchmarks.gradient_cost", *given.arguments]))
        write_record(results, given.label, record({**about, "options": options(given)}, rounds))
    return int(bool(failures))


async def measure(url: str, given: argparse.Namespace, console: Console) -> list[tuple[Phase, Phase]]:
    """Quiet and loaded, of each round. Raises NotMeasurable where no text came."""
    prompts = _prompts(random.Random(given.seed), given.prompt_words)
    rounds = []
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT) as client:
        with progress_bar(console) as progress:
            task = progress.add_task("phases", total=2 * given.rounds)
            await _feature(client, next(prompts))  # the base adapter is read with the first
            for _ in range(given.rounds):
                pair = []
                for loaded in (False, True):
                    pair.append(await run_phase(client, prompts, given, loaded=loaded))
                    progress.advance(task)
                rounds.append((pair[0], pair[1]))
    return rounds


async def run_phase(
    client: httpx.AsyncClient, prompts: Iterator[str], given: argparse.Namespace, *, loaded: bool
) -> Phase:
    """What runs when the time is over is heard out. Raises NotMeasurable."""
    started = time.perf_counter()
    heard: list[Heard] = []
    features: list[float] = []
    failures: Counter[str] = Counter()

    async def stream() -> None:
        while time.perf_counter() - started < given.seconds:
            body = {"prompt": next(prompts), "router": "none", "max_new_tokens": given.max_tokens, "ignore_eos": True}
            outcome = await listen(client, body)
            if isinstance(outcome, Unheard):
                failures[outcome.reason] += 1
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                heard.append(outcome)

    async def load() -> None:
        while time.perf_counter() - started < given.seconds:
            before = time.perf_counter()
            try:
                await _feature(client, next(prompts))
                features.append(time.perf_counter() - before)
            except httpx.HTTPError as error:
                failures[f"dry run: {type(error).__name__}: {error}"] += 1
                await asyncio.sleep(_PAUSE_SECONDS)

    async with asyncio.TaskGroup() as group:
        for _ in range(given.streams):
            group.create_task(stream())
        if loaded:
            group.create_task(load())
    return _phase(time.perf_counter() - started, heard, features, failures)


def table(rounds: Sequence[tuple[Phase, Phase]], title: str) -> Table:
    """Medians over the rounds with the lowest and highest, and the ratio of neighbours."""
    shown = Table("", "quiet", "beside features", "ratio", title=title)
    for name, field, scale in (
        ("output tokens/s", "tokens_per_second", 1.0),
        ("inter-token p50, ms", "gap_p50", 1000.0),
        ("inter-token p95, ms", "gap_p95", 1000.0),
    ):
        columns = [Spread.of([getattr(pair[side], field) for pair in rounds]) for side in (0, 1)]
        shown.add_row(name, *(one.text(scale=scale, digits=1) for one in columns), _ratio(rounds, field).text())
    seconds = [one for _, loaded in rounds for one in loaded.features]
    each = f"{1000 * median(seconds):.0f}" if seconds else "–"
    shown.add_row("dry runs by gradient", "–", str(len(seconds)), "")
    shown.add_row("each, median ms", "–", each, "")
    return shown


def record(about: Mapping[str, Any], rounds: Sequence[tuple[Phase, Phase]]) -> dict[str, Any]:
    """Everything that was measured; times in seconds."""
    fields = ("tokens_per_second", "gap_p50", "gap_p95")
    return {
        **about,
        "rounds": [{"quiet": asdict(quiet), "loaded": asdict(loaded)} for quiet, loaded in rounds],
        "ratio": {field: asdict(_ratio(rounds, field)) for field in fields},
    }


def _ratio(rounds: Sequence[tuple[Phase, Phase]], field: str) -> Spread:
    return Spread.of([getattr(loaded, field) / getattr(quiet, field) for quiet, loaded in rounds])


def _phase(seconds: float, heard: Sequence[Heard], features: Sequence[float], failures: Mapping[str, int]) -> Phase:
    gaps = [gap for one in heard for gap in one.gaps]
    if not gaps:
        raise NotMeasurable(f"no text came in a phase of {seconds:.1f} s; failures: {dict(failures)}")
    p50, p95 = np.percentile(gaps, (50, 95))
    rate = sum(one.completion_tokens for one in heard) / seconds
    return Phase(seconds, rate, float(p50), float(p95), tuple(features), dict(failures))


async def _feature(client: httpx.AsyncClient, prompt: str) -> None:
    (await client.post("/route", json={"prompt": prompt, "router": "gradient"})).raise_for_status()


def _prompts(rng: random.Random, words: int) -> Iterator[str]:
    while True:
        yield " ".join(rng.choices(WORDS, k=words))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gradient_cost", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--store", type=Path, required=True, help="an expert store; a copy of it is served")
    parser.add_argument("--streams", type=positive, default=4, help="default %(default)s")
    parser.add_argument("--seconds", type=positive, default=20, help="of each phase; default %(default)s")
    parser.add_argument("--rounds", type=positive, default=3, help="default %(default)s")
    parser.add_argument("--prompt-words", type=positive, default=50, help="default %(default)s")
    parser.add_argument("--max-tokens", type=two_or_more, default=64, help="at least 2; default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts; default %(default)s")
    parser.add_argument("--server", default="", metavar="FLAGS", help='more of the server\'s, as "--dtype fp32"')
    add_base(parser)
    parser.add_argument("--label", type=label, help="write LABEL.json to benchmarks/results/gradient_cost/")
    return parser.parse_args(arguments, argparse.Namespace(arguments=list(arguments)))


if __name__ == "__main__":
    sys.exit(main())
