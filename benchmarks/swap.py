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
import multiprocessing
import random
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import cycle, product
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.command_line import add_base, label, options, positive, progress_bar, two_or_more, write_record
from benchmarks.generation import Heard, Unheard, body, listen
from benchmarks.lifecycle import Lifecycle, RouteFailed
from benchmarks.serving.statistics import Spread
from benchmarks.serving.work import WORDS
from benchmarks.synthetic_experts import Shape, all_linears, write_synthetic
from server.environment import describe_run
from server.model.base import load_base
from server.model.chat import ChatFormat
from server.own_server import own_server

RESULTS = Path(__file__).parent / "results" / "swap"
FRESH, MOVING, STEADY = "fresh", "moving", "steady"
EXACT = "fp32"  # the number format in which a text does not depend on the batch
ROUTABLE_SECONDS = 30.0  # for a dry run to show what was registered
_TIMEOUT = httpx.Timeout(120.0, connect=10.0)
_PAUSE_SECONDS = 0.1  # after a failure, so that a server that is gone is not asked in a tight loop


@dataclass(frozen=True)
class Registration:
    """Seconds from sending the files to the 201, and to the end of the dry run that shows the expert."""

    registered: float
    routable: float


@dataclass(frozen=True)
class Swap:
    """A new version in the place of the old one; `failure` says what went wrong."""

    seconds: float
    failure: str | None


@dataclass(frozen=True)
class Phase:
    """A stretch of load. Gaps are between two pieces of a text, over all answers; `changed` are texts not as known,
    which says something in fp32 alone."""

    seconds: float
    answers: int
    failures: Mapping[str, int]
    changed: int
    tokens_per_second: float
    gap_p50: float
    gap_p95: float


@dataclass(frozen=True)
class Round:
    """A quiet phase, one with swaps right behind it, and the swaps."""

    quiet: Phase
    swapping: Phase
    swaps: Sequence[Swap]

    def ratio(self, figure: str) -> float:
        """While swapping, over what it was before."""
        ratio: float = getattr(self.swapping, figure) / getattr(self.quiet, figure)
        return ratio


@dataclass
class Known:
    """Which adapter every version was made from, and what each adapter answers to each prompt.

    A version is put in before any request can reach it.
    """

    adapter_of: MutableMapping[str, int] = field(default_factory=dict)
    texts: dict[tuple[int, int], str] = field(default_factory=dict)

    def is_as_known(self, heard: Heard, prompt: int) -> bool:
        return self.texts[self.adapter_of[heard.ref], prompt] == heard.text


def main(arguments: Sequence[str] | None = None, *, results: Path = RESULTS) -> int:
    """The exit status."""
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        adapters = _write_adapters(Path(folder), given)
        with (
            own_server(Path(folder), *_flags(given)) as server,
            httpx.Client(base_url=server.url, timeout=_TIMEOUT) as client,
            progress_bar(console) as progress,
        ):
            lifecycle = Lifecycle(client, adapters)
            try:
                registrations = time_registrations(lifecycle, given, progress)
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


def time_registrations(lifecycle: Lifecycle, given: argparse.Namespace, progress: Progress) -> list[Registration]:
    """One at a time, each gone again before the next."""
    task = progress.add_task("registrations", total=given.registrations)
    timed = []
    for number in range(given.registrations):
        timed.append(time_registration(lifecycle, number % given.adapters))
        progress.advance(task)
    return timed


def time_registration(lifecycle: Lifecycle, adapter: int, *, patience: float = ROUTABLE_SECONDS) -> Registration:
    """Leaves nothing behind. Raises RouteFailed when no dry run shows the expert within `patience` seconds."""
    started = time.perf_counter()
    version = lifecycle.register(FRESH, adapter)
    registered = time.perf_counter() - started
    while f"{FRESH}@{version}" not in lifecycle.asked("Is this yours?"):
        if time.perf_counter() - started > patience:
            raise RouteFailed(f"{FRESH}@{version} was registered, and no dry run has asked it for {patience} s")
    routable = time.perf_counter() - started
    lifecycle.retire(FRESH, version)
    return Registration(registered, routable)


def swap_steadily(
    lifecycle: Lifecycle, known: Known, live: int, adapters: Iterator[int], *, period: float, stop: Event
) -> tuple[list[Swap], int]:
    """Until told to stop; also returns the version that is live then. One that takes longer than the period delays the
    next; none is made up for."""
    swaps = []
    due = time.monotonic() + period
    while not stop.wait(max(0.0, due - time.monotonic())):
        due = max(due + period, time.monotonic())
        swap, live = swap_once(lifecycle, known, live, next(adapters))
        swaps.append(swap)
    return swaps, live


def swap_once(lifecycle: Lifecycle, known: Known, live: int, adapter: int) -> tuple[Swap, int]:
    """What came of it, and the version that is live from now on."""
    started = time.perf_counter()
    failure = None
    try:
        version = lifecycle.register(MOVING, adapter, activate=False)
        known.adapter_of[f"{MOVING}@{version}"] = adapter
        lifecycle.move(MOVING, version)
        live, old = version, live
        lifecycle.delete(MOVING, old)
    except (RouteFailed, httpx.HTTPError) as error:
        failure = f"swap: {type(error).__name__}: {error}"
    return Swap(time.perf_counter() - started, failure), live


async def run_phase(
    client: httpx.AsyncClient,
    asks: Iterator[tuple[int, Mapping[str, Any]]],
    known: Known,
    *,
    seconds: float,
    concurrency: int,
    on_time: Callable[[float], None],
) -> Phase:
    """Requests one after another in each of `concurrency` places; what runs when the time is over is heard out.

    An ask is the number of its prompt and the request's body.
    """
    started = time.perf_counter()
    heard: list[tuple[int, Heard]] = []
    failures: Counter[str] = Counter()

    async def keep_asking() -> None:
        while (gone := time.perf_counter() - started) < seconds:
            on_time(gone)
            prompt, request = next(asks)
            outcome = await listen(client, request)
            if isinstance(outcome, Unheard):
                failures[outcome.reason] += 1
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                heard.append((prompt, outcome))

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(keep_asking())
    return summarise(time.perf_counter() - started, heard, failures, known)


def summarise(seconds: float, heard: Sequence[tuple[int, Heard]], failures: Mapping[str, int], known: Known) -> Phase:
    """Raises RouteFailed where no text came at all."""
    gaps = [gap for _, one in heard for gap in one.gaps]
    if not gaps:
        raise RouteFailed(f"no text came in a phase of {seconds:.1f} s; failures: {dict(failures)}")
    p50, p95 = np.percentile(gaps, (50, 95))
    return Phase(
        seconds=seconds,
        answers=len(heard),
        failures=dict(failures),
        changed=sum(not known.is_as_known(one, prompt) for prompt, one in heard),
        tokens_per_second=sum(one.completion_tokens for _, one in heard) / seconds,
        gap_p50=float(p50),
        gap_p95=float(p95),
    )


def _load(
    url: str, lifecycle: Lifecycle, adapters: Sequence[Path], given: argparse.Namespace, progress: Progress
) -> list[Round]:
    rng = random.Random(given.seed)
    prompts = [" ".join(rng.choices(WORDS, k=given.prompt_words)) for _ in range(given.prompts)]
    known, live = _learn(lifecycle, prompts, given, progress)
    spawn = multiprocessing.get_context("spawn")
    with (
        spawn.Manager() as manager,
        ProcessPoolExecutor(1, mp_context=spawn) as process,
    ):
        known.adapter_of = manager.dict(known.adapter_of)
        stop = manager.Event()
        swapper = partial(swap_from_outside, url, adapters, known, period=given.period, stop=stop)
        process.submit(begun).result()
        return asyncio.run(_rounds(url, process, swapper, live, stop, known, prompts, given, progress))


def begun() -> bool:
    """For a process to have been started and to know this module."""
    return True


def swap_from_outside(
    url: str, adapters: Sequence[Path], known: Known, live: int, *, period: float, stop: Event
) -> tuple[list[Swap], int]:
    """`swap_steadily` for a process of its own."""
    with httpx.Client(base_url=url, timeout=_TIMEOUT) as client:
        lifecycle = Lifecycle(client, adapters)
        return swap_steadily(lifecycle, known, live, cycle(range(len(adapters))), period=period, stop=stop)


def _learn(
    lifecycle: Lifecycle, prompts: Sequence[str], given: argparse.Namespace, progress: Progress
) -> tuple[Known, int]:
    """What every adapter answers, each prompt asked alone; and the one version of the moving expert that stays."""
    task = progress.add_task("known answers", total=given.adapters * len(prompts))
    known = Known()
    for adapter in range(given.adapters):
        ref = f"{MOVING}@{lifecycle.register(MOVING, adapter)}"
        known.adapter_of[ref] = adapter
        for number, prompt in enumerate(prompts):
            known.texts[adapter, number] = lifecycle.answer(ref, prompt, given.max_tokens)
            progress.advance(task)
    for version in range(1, given.adapters):
        lifecycle.delete(MOVING, version)
    known.adapter_of[f"{STEADY}@{lifecycle.register(STEADY, 0)}"] = 0
    return known, given.adapters


async def _rounds(
    url: str,
    process: ProcessPoolExecutor,
    swapper: Callable[[int], tuple[list[Swap], int]],
    live: int,
    stop: Event,
    known: Known,
    prompts: Sequence[str],
    given: argparse.Namespace,
    progress: Progress,
) -> list[Round]:
    limits = httpx.Limits(max_connections=given.concurrency, max_keepalive_connections=given.concurrency)
    asks = (
        (number, body(ref, prompts[number], given.max_tokens))
        for number, ref in cycle(product(range(len(prompts)), (MOVING, f"{STEADY}@1")))
    )

    async def phase(name: str) -> Phase:
        task = progress.add_task(f"{name}, seconds", total=given.seconds)
        ran = await run_phase(
            client,
            asks,
            known,
            seconds=given.seconds,
            concurrency=given.concurrency,
            on_time=lambda gone: progress.update(task, completed=int(gone)),
        )
        progress.update(task, completed=given.seconds)
        return ran

    rounds = []
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=_TIMEOUT) as client:
        for number in range(1, given.rounds + 1):
            quiet = await phase(f"quiet {number}")
            stop.clear()
            swapping = asyncio.get_running_loop().run_in_executor(process, swapper, live)
            try:
                loaded = await phase(f"swapping {number}")
            finally:
                stop.set()
                swaps, live = await swapping
            rounds.append(Round(quiet, loaded, swaps))
    return rounds


def registration_table(registrations: Sequence[Registration], rank: int) -> Table:
    """Medians with the lowest and the highest."""
    shown = Table(
        "from sending the files", "ms", title=f"{len(registrations)} registrations of rank {rank}, idle server"
    )
    shown.add_row("until the 201", Spread.of([one.registered for one in registrations]).text(scale=1000, digits=0))
    shown.add_row(
        "until a dry run asks it", Spread.of([one.routable for one in registrations]).text(scale=1000, digits=0)
    )
    return shown


def phase_table(rounds: Sequence[Round], *, exact: bool) -> Table:
    """The phases side by side, medians with the lowest and the highest round, and the swaps in the title."""
    swaps = [swap for one in rounds for swap in one.swaps]
    rate = len(swaps) / sum(one.swapping.seconds for one in rounds)
    took = f", {Spread.of([swap.seconds for swap in swaps]).text(scale=1000, digits=0)} ms each" if swaps else ""
    title = f"{len(swaps)} swaps in {len(rounds)} rounds, {rate:.2f} a second{took}"
    shown = Table("", "quiet", "swapping", "ratio", title=title)
    before, during = [one.quiet for one in rounds], [one.swapping for one in rounds]

    def add_counts(name: str, count: Callable[[Phase], int]) -> None:
        quiet, swapping = (sum(map(count, phases)) for phases in (before, during))
        shown.add_row(name, str(quiet), str(swapping), "")

    add_counts("answers", lambda phase: phase.answers)
    add_counts("failed requests", lambda phase: sum(phase.failures.values()))
    if exact:
        add_counts("changed texts", lambda phase: phase.changed)
    for name, figure, scale in (
        ("output tokens/s", "tokens_per_second", 1),
        ("inter-token p50, ms", "gap_p50", 1000),
        ("inter-token p95, ms", "gap_p95", 1000),
    ):
        quiet, swapping = (
            Spread.of([getattr(phase, figure) for phase in phases]).text(scale=scale, digits=1)
            for phases in (before, during)
        )
        shown.add_row(name, quiet, swapping, Spread.of([one.ratio(figure) for one in rounds]).text())
    return shown


def record(about: Mapping[str, Any], registrations: Sequence[Registration], rounds: Sequence[Round]) -> dict[str, Any]:
    """Everything that was measured; times in seconds."""
    over = {
        name: asdict(Spread.of([getattr(one, name) for one in registrations])) for name in ("registered", "routable")
    }
    return {
        **about,
        "registrations": {"each": [asdict(one) for one in registrations], "over_all": over},
        "gap_p95_ratio": asdict(Spread.of([one.ratio("gap_p95") for one in rounds])),
        "rounds": [asdict(one) for one in rounds],
    }


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
