"""What does a pool larger than its slots cost? Starts a server of its own and measures working sets of growing size.

    python -m benchmarks.pool --experts 1000 --slots 32 --label zipf-1000

Publishes random experts for the bundled base, then asks for working sets of 1, 2, 3 and 4 times the slots and of all
experts, by popularity. The first one is resident as a whole: the ratios are to it, round by round. Before each round
its most popular experts are asked once, so that no working set pays for the one before. Loads and evictions are the
server's own counts; memory is the server process's largest resident set, against the formula of docs/configuration.md.
Rounds are repeated as long as another one fits into --minutes; the first is always made.

Prints a table; --label also writes LABEL.json and LABEL.png to benchmarks/results/pool/.
"""

import argparse
import asyncio
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import torch
from matplotlib.figure import Figure
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ByteSize, TypeAdapter
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.command_line import add_base, label, options, positive, progress_bar, two_or_more, write_record
from benchmarks.serving.load import Round, run_round
from benchmarks.serving.statistics import Figures, Spread, failures, figures, ratios, summarise
from benchmarks.serving.work import POPULARITIES, Work, jobs
from benchmarks.synthetic_experts import Shape, publish_synthetic
from benchmarks.turns import turns
from expert_store import BaseSpec, ManifestDraft
from server.app import SLOT_RANK
from server.environment import describe_run
from server.model.base import Base, load_base
from server.model.native import load_kernels
from server.own_server import OwnServer, own_server

RESULTS = Path(__file__).parent / "results" / "pool"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
KV_BYTES = 1 << 30
OVERHEAD_BYTES = 1126 << 20
COUNTED = ("loads_disk", "loads_host", "evictions")


@dataclass(frozen=True)
class Measured:
    """One working set's rounds, and what the pool did during each."""

    num_experts: int
    rounds: tuple[Figures, ...]
    counts: tuple[Mapping[str, float], ...]
    failures: Mapping[str, int]


def main(arguments: Sequence[str] | None = None, *, results: Path = RESULTS) -> int:
    """The exit status: 1 where a request failed or the memory was over the formula."""
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    kernels = load_kernels(given.cache)
    base = load_base(given.base, cache=given.cache, kernels=kernels)  # as the server does
    formula = _formula(given, base, with_kernels=kernels is not None)
    spec = base.spec
    del base
    with tempfile.TemporaryDirectory() as folder:
        names = _publish(Path(folder) / "store", spec, given, console)
        with own_server(Path(folder), *_flags(given)) as server, progress_bar(console) as progress:
            task = progress.add_task("requests", total=given.rounds * _round_requests(given))
            measured = asyncio.run(_measure(server, given, names, lambda: progress.advance(task)))
            memory = {"resident_bytes": server.peak_resident_bytes(), "formula_bytes": formula}
    console.print(table(measured, given))
    console.print(f"memory: {memory['resident_bytes'] / 1e9:.2f} GB at most, {formula / 1e9:.2f} GB by the formula")
    for one in measured:
        for reason, count in one.failures.items():
            console.print(f"{one.num_experts} experts: {count} x {reason}", markup=False)
    if given.label is not None:
        about = describe_run(shlex.join(["python", "-m", "benchmarks.pool", *given.arguments]))
        _write(measured, {**about, "options": options(given), "memory": memory}, results, given.label)
    return int(any(one.failures for one in measured) or memory["resident_bytes"] > formula)


def _publish(store: Path, spec: BaseSpec, given: argparse.Namespace, console: Console) -> list[str]:
    """The names of the experts, all in a new store."""
    targets = tuple(name for name in TARGETS if any(path.endswith(f".{name}") for path in spec.linears))
    drafts = {f"synthetic-{number:04}": ManifestDraft() for number in range(given.experts)}
    with progress_bar(console) as progress:
        task = progress.add_task("publishing", total=len(drafts))
        publish_synthetic(store, spec, Shape(given.rank, targets), drafts, on_published=lambda: progress.advance(task))
    return list(drafts)


def _round_requests(given: argparse.Namespace) -> int:
    """Over all working sets, those that warm up among them."""
    return len(working_sets(given.slots, given.experts)) * int(given.slots + given.requests)


async def _measure(
    server: OwnServer, given: argparse.Namespace, names: Sequence[str], on_outcome: Callable[[], None]
) -> list[Measured]:
    """All working sets in turns, A B C A B C."""
    sets = [names[:size] for size in working_sets(given.slots, len(names))]
    work = Work(
        num_requests=given.requests,
        prompt_words=given.prompt_words,
        max_tokens=given.max_tokens,
        popularity=given.popularity,
        template="{}",
        seed=given.seed,
    )
    once = replace(work, num_requests=given.slots, max_tokens=2, popularity="distinct", prompt_words=4)
    rounds: list[list[Round]] = [[] for _ in sets]
    counts: list[list[Mapping[str, float]]] = [[] for _ in sets]
    for number in turns(given.rounds, minutes=given.minutes):
        for index, models in enumerate(sets):
            await run_round(server.url, jobs(once, models[: given.slots], number), given.concurrency, on_outcome)
            before = pool_counts(server.url)
            rounds[index].append(await run_round(server.url, jobs(work, models, number), given.concurrency, on_outcome))
            after = pool_counts(server.url)
            counts[index].append({name: after[name] - before[name] for name in COUNTED})
    return [
        Measured(len(models), tuple(map(figures, ran)), tuple(counted), failures(ran))
        for models, ran, counted in zip(sets, rounds, counts, strict=True)
    ]


def working_sets(slots: int, experts: int) -> list[int]:
    """1 to 4 times the slots, and all there are."""
    return sorted({min(factor * slots, experts) for factor in (1, 2, 3, 4)} | {experts})


def pool_counts(url: str) -> dict[str, float]:
    """Loads by source and evictions since the server began, over all experts."""
    counts = dict.fromkeys(COUNTED, 0.0)
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            if sample.name == "lora_relay_expert_loads_total":
                counts[f"loads_{sample.labels['source']}"] += sample.value
            elif sample.name == "lora_relay_expert_evictions_total":
                counts["evictions"] += sample.value
    return counts


def table(measured: Sequence[Measured], given: argparse.Namespace) -> Table:
    """Medians over the rounds with the lowest and highest; loads and evictions are a round's mean."""
    title = f"{given.slots} slots, {given.requests} requests a round, {given.concurrency} at a time, {given.popularity}"
    shown = Table("experts", "output tokens/s", "of resident", "first token p95, s", *COUNTED, title=title)
    for one in measured:
        summary = summarise(one.rounds)
        cells = [summary["tokens_per_second"], _ratio(one, measured), summary["first_token_p95"]]
        means = [sum(counted[name] for counted in one.counts) / len(one.counts) for name in COUNTED]
        shown.add_row(str(one.num_experts), *(spread.text() for spread in cells), *(f"{mean:.1f}" for mean in means))
    return shown


def plot(measured: Sequence[Measured], title: str) -> Figure:
    """Throughput against the working set, each round a point."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    sizes = [one.num_experts for one in measured]
    axes.plot(sizes, [summarise(one.rounds)["tokens_per_second"].median for one in measured], "-", label="median")
    axes.axvline(sizes[0], linestyle=":", color="grey", label="all resident")
    for one in measured:
        axes.plot([one.num_experts] * len(one.rounds), [ran.tokens_per_second for ran in one.rounds], "o", color="C0")
    axes.set(title=title, xlabel="experts asked for", ylabel="output tokens/s", xscale="log")
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
    axes.legend()
    return figure


def _ratio(one: Measured, measured: Sequence[Measured]) -> Spread:
    return ratios(one.rounds, measured[0].rounds)["tokens_per_second"]


def _write(measured: Sequence[Measured], about: Mapping[str, Any], folder: Path, name: str) -> None:
    sets = [{**asdict(one), "of_resident": asdict(_ratio(one, measured))} for one in measured]
    write_record(folder, name, {**about, "working_sets": sets}, plot(measured, name))


def _formula(given: argparse.Namespace, base: Base, *, with_kernels: bool) -> int:
    """docs/configuration.md, "How much memory", for a CPU."""
    head: nn.Linear = base.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    base_bytes = sum(p.nbytes for p in base.model.parameters()) + head.weight.nbytes
    number_bytes = 2 if with_kernels and base.dtype == torch.bfloat16 else 4
    slot_bytes = SLOT_RANK * sum(sum(widths) for widths in base.spec.linears.values()) * number_bytes
    return int(base_bytes + KV_BYTES + given.slots * slot_bytes + given.expert_memory + OVERHEAD_BYTES)


def _flags(given: argparse.Namespace) -> list[str]:
    sizes = ["--expert-slots", given.slots, "--expert-memory", given.expert_memory, "--kv-memory", KV_BYTES]
    windows = ["--max-rank", given.rank, "--chain-window", 1, "--plain-window", 1]
    where = ["--base", given.base, "--cache", str(given.cache), "--no-demo"]
    # prompts are the same for every working set, which would find in the cache what a smaller one has asked
    return [*map(str, [*sizes, *windows]), *where, "--no-prefix-cache"]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    size = TypeAdapter(ByteSize).validate_python
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pool", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--experts", type=positive, default=1000, help="default %(default)s")
    parser.add_argument("--slots", type=positive, default=32, help="default %(default)s")
    parser.add_argument("--rank", type=int, default=8, choices=range(1, SLOT_RANK + 1), help="default %(default)s")
    parser.add_argument("--expert-memory", type=size, default="1GiB", help="of the host cache; default %(default)s")
    parser.add_argument("--popularity", choices=POPULARITIES, default="zipf", help="default %(default)s")
    parser.add_argument("--concurrency", type=positive, default=16, help="requests under way; default %(default)s")
    parser.add_argument("--requests", type=positive, default=128, help="a round; default %(default)s")
    parser.add_argument("--rounds", type=positive, default=3, help="default %(default)s")
    parser.add_argument("--minutes", type=float, default=8, help="for all rounds; default %(default)s")
    parser.add_argument("--prompt-words", type=positive, default=50, help="default %(default)s")
    parser.add_argument("--max-tokens", type=two_or_more, default=32, help="at least 2; default %(default)s")
    add_base(parser)
    parser.add_argument("--seed", type=int, default=1, help="of the prompts; default %(default)s")
    parser.add_argument("--label", type=label, help="write LABEL.json and LABEL.png to benchmarks/results/pool/")
    given = parser.parse_args(arguments, argparse.Namespace(arguments=list(arguments)))
    if not 1 <= given.slots <= given.experts:
        parser.error("--slots: between 1 and the number of experts")
    return given


if __name__ == "__main__":
    sys.exit(main())
