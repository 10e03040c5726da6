"""What does asking cost? Times a chain whose last expert accepts against the same request with that expert named.

    python -m benchmarks.chain --label chain
    python -m benchmarks.chain --curve activated=1,8,64 --curve plain=1,8 --chain-window 64

activated: woken by the generation prompt. late: woken by the indicators' first token. shortlist, late-shortlist: the
same, where the eight experts whose profiles lie nearest are asked. plain: LoRA, each with a prefill of its own. gated:
plain ones asked through a gate that wakes late; the winner's answer takes a prefill of its own.

Starts a server of its own with random experts of the bundled base, all of them resident, and gives it a chain of each
size in turn. Thresholds say who accepts: the last one, and nobody before; every answer is held against that. A request
asks for one token, so that its answer is there when the first token is. Prompts are random words, new in every request,
so that the prefix cache knows no more than the system prompt, on both sides. A chained request and a named one make a
pair and take turns at going first; ratios are those of pairs. The first round warms up and is left out.

Rounds are repeated as long as another one fits into --minutes. Prints a table; --label also writes LABEL.json and
LABEL.png to benchmarks/results/chain/.
"""

import argparse
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import add_base, label, options, positive, progress_bar, write_record
from benchmarks.serving.statistics import Spread
from benchmarks.serving.work import WORDS
from benchmarks.synthetic_experts import Shape, all_linears, publish_synthetic
from benchmarks.turns import turns
from expert_store import Indicators, ManifestDraft, Profile
from server.app import SLOT_RANK
from server.environment import describe_run
from server.model.base import Base, load_base
from server.model.chat import ChatFormat
from server.model.feature import PromptFeature
from server.own_server import own_server

RESULTS = Path(__file__).parent / "results" / "chain"
ACCEPTS, REJECTS = 1e-9, 1 - 1e-9  # thresholds that a random expert's score is above, and below
_TIMEOUT = httpx.Timeout(300.0, connect=10.0)

Pool = Literal["activated", "late", "plain", "gated"]
_GATE_RANK = 4
_SHORTLIST = 8
_SAMPLES = 4  # prompts an accepting expert's profile is made of


@dataclass(frozen=True)
class Variant:
    """A way of asking, one curve of the result.

    Its chains are made of `pool`'s experts; `fields` stand in the chained request beside the prompt. `num_asked` says
    how many experts of a chain of so many must have been asked in the end, which is checked.
    """

    pool: Pool
    counts: tuple[int, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    num_asked: Callable[[int], int] = lambda count: count


def _shortlisted(pool: Pool) -> Variant:
    return Variant(pool, (8, 64, 512), {"shortlist": _SHORTLIST}, lambda count: min(_SHORTLIST, count))


VARIANTS = {
    "activated": Variant("activated", (1, 8, 64, 512)),
    "shortlist": _shortlisted("activated"),
    "late": Variant("late", (1, 8, 64, 512)),
    "late-shortlist": _shortlisted("late"),
    "gated": Variant("gated", (1, 8, 64)),
    "plain": Variant("plain", (1, 8, 16)),
}


@dataclass(frozen=True)
class Curve:
    """A variant and the chain sizes it is measured at."""

    name: str
    counts: tuple[int, ...]

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.name]


@dataclass(frozen=True)
class Asked:
    """One answer of one token. Seconds are the client's own; routing and tokens are as the server counts them."""

    seconds: float
    routing_seconds: float
    prompt_tokens: int
    computed_tokens: int


@dataclass(frozen=True)
class Pair:
    """Two requests next to each other in time."""

    chained: Asked
    named: Asked

    @property
    def ratio(self) -> float:
        return self.chained.seconds / self.named.seconds


@dataclass(frozen=True)
class Point:
    """All pairs of one curve at one chain size."""

    curve: str
    num_experts: int
    pairs: tuple[Pair, ...]

    @property
    def ratio(self) -> Spread:
        return Spread.of([pair.ratio for pair in self.pairs])

    def over_pairs(self, figure: Callable[[Pair], float]) -> Spread:
        return Spread.of([figure(pair) for pair in self.pairs])


class SteeringFailed(Exception):
    """Not the expert answered that should have, or not all were asked: the times would mean nothing."""


def main(arguments: Sequence[str] | None = None, *, results: Path = RESULTS) -> int:
    """The exit status: 1 where an answer was not the one that was to be measured."""
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    try:
        points = _run(given, console)
    except (SteeringFailed, httpx.HTTPError) as error:
        console.print(f"{type(error).__name__}: {error}", style="red", markup=False)
        return 1
    prompt_tokens = points[0].pairs[0].named.prompt_tokens
    console.print(table(points, f"windows of {given.chain_window}, {prompt_tokens} prompt tokens"))
    if given.label is not None:
        about = describe_run(shlex.join(["python", "-m", "benchmarks.chain", *given.arguments]))
        about["options"] = options(given)
        write_record(results, given.label, record(points, about), plot(points, given.label))
    return 0


def _run(given: argparse.Namespace, console: Console) -> list[Point]:
    """A store, a server on it, and all pairs."""
    base = load_base(given.base, cache=given.cache)
    chat = ChatFormat(base.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        _publish(Path(folder) / "store", base, chat, given, console)
        del base
        with (
            own_server(Path(folder), *_flags(given)) as server,
            httpx.Client(base_url=server.url, timeout=_TIMEOUT) as client,
            progress_bar(console) as progress,
        ):
            task = progress.add_task("pairs", total=(given.pairs + 1) * sum(len(c.counts) for c in given.curves))
            return measure(
                client,
                given.curves,
                fresh_prompts(chat, given.prompt_tokens, given.seed),
                num_pairs=given.pairs,
                minutes=given.minutes,
                on_pair=lambda: progress.advance(task),
            )


def pool_sizes(curves: Sequence[Curve]) -> dict[Pool, int]:
    """How many experts of each pool the largest chain needs."""
    sizes: dict[Pool, int] = {}
    for curve in curves:
        pool = curve.variant.pool
        sizes[pool] = max(sizes.get(pool, 0), *curve.counts)
    return sizes


def chain_order(pool: Pool, count: int) -> list[str]:
    """The chain of so many experts; its last one accepts, and is last in the chains of every size."""
    return [f"{pool}-{number:04}" for number in reversed(range(count))]


def drafts(pool: Pool, count: int) -> dict[str, ManifestDraft]:
    """What the manifests say: all can accept and reject, and only the last of the chain does accept."""
    order = chain_order(pool, count)
    return {
        name: ManifestDraft(indicators=Indicators(), threshold=ACCEPTS if name == order[-1] else REJECTS)
        for name in order
    }


def fresh_prompts(chat: ChatFormat, num_tokens: int, seed: int) -> Iterator[str]:
    """Random words without end, each text new; rendered they have `num_tokens`, or as many as whole words allow."""
    rng = random.Random(seed)
    costs = {word: len(chat.encode(f" {word}")) for word in WORDS}
    while True:
        words = [rng.choice(WORDS)]
        left = num_tokens - len(chat.render([{"role": "user", "content": words[0]}]).tokens)
        while affordable := [word for word in WORDS if costs[word] <= left]:
            words.append(rng.choice(affordable))
            left -= costs[words[-1]]
        yield " ".join(words)


def check(routing: Mapping[str, Any], *, expert: str, reason: str, num_asked: int) -> None:
    """Raises SteeringFailed unless this expert answered for this reason, after so many had been asked."""
    considered = routing["considered"]
    answered = (routing["expert"], routing["reason"], len(considered))
    if answered != (expert, reason, num_asked):
        accepted = [one["expert"] for one in considered if one["accepted"]]
        raise SteeringFailed(
            f"expert, reason, number asked were to be {(expert, reason, num_asked)} and are {answered}; "
            f"accepted by {accepted}"
        )


def measure(
    client: httpx.Client,
    curves: Sequence[Curve],
    prompts: Iterator[str],
    *,
    num_pairs: int,
    minutes: float,
    on_pair: Callable[[], None],
) -> list[Point]:
    """Every chain size of every curve in turns, at least once. Raises SteeringFailed and httpx.HTTPError."""
    pairs: dict[tuple[str, int], list[Pair]] = {(c.name, count): [] for c in curves for count in c.counts}
    for number in turns(num_pairs + 1, minutes=minutes, at_least=2):
        for (name, count), measured in pairs.items():
            pair = _ask_pair(client, VARIANTS[name], count, prompts, chained_first=number % 2 == 0)
            measured.extend([pair] if number > 0 else [])
            on_pair()
    return [Point(name, count, tuple(measured)) for (name, count), measured in pairs.items()]


def _ask_pair(
    client: httpx.Client, variant: Variant, count: int, prompts: Iterator[str], *, chained_first: bool
) -> Pair:
    order = chain_order(variant.pool, count)
    client.put("/chain", json={"order": order}).raise_for_status()

    def chained() -> Asked:
        fields = {"router": "chain", **variant.fields}
        return _ask(
            client, next(prompts), fields, expert=order[-1], reason="accepted", num_asked=variant.num_asked(count)
        )

    def named() -> Asked:
        return _ask(client, next(prompts), {"expert": order[-1]}, expert=order[-1], reason="pinned", num_asked=0)

    if chained_first:
        first = chained()
        return Pair(first, named())
    second = named()
    return Pair(chained(), second)


def _ask(client: httpx.Client, prompt: str, fields: Mapping[str, Any], **wanted: Any) -> Asked:
    started = time.perf_counter()
    response = client.post("/generate", json={"prompt": prompt, "max_new_tokens": 1, "ignore_eos": True, **fields})
    seconds = time.perf_counter() - started
    response.raise_for_status()
    answer = response.json()
    check(answer["routing"], **wanted)
    usage = answer["usage"]
    return Asked(seconds, answer["timings"]["routing_ms"] / 1000, usage["prompt_tokens"], usage["computed_tokens"])


def table(points: Sequence[Point], title: str) -> Table:
    """Medians over the pairs, of the ratio also the lowest and the highest."""
    columns = ("first token, ms", "named, ms", "ratio", "routing, ms", "tokens computed", "named")
    shown = Table("chain", *columns, title=f"Time to first token, {title}")
    for point in points:
        cells = [
            _median(point, lambda pair: 1000 * pair.chained.seconds),
            _median(point, lambda pair: 1000 * pair.named.seconds),
            point.ratio.text(),
            _median(point, lambda pair: 1000 * pair.chained.routing_seconds),
            _median(point, lambda pair: pair.chained.computed_tokens),
            _median(point, lambda pair: pair.named.computed_tokens),
        ]
        shown.add_row(f"{point.num_experts} {point.curve}", *cells)
    return shown


def _median(point: Point, figure: Callable[[Pair], float]) -> str:
    return f"{point.over_pairs(figure).median:.0f}"


def record(points: Sequence[Point], about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was measured; times in seconds."""
    return {**about, "points": [{**asdict(point), "ratio": asdict(point.ratio)} for point in points]}


def plot(points: Sequence[Point], title: str) -> Figure:
    """Ratio and time against the chain's length; each pair a point, medians joined."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle(title)
    ratios, seconds = figure.subplots(1, 2)
    for color, curve in enumerate(dict.fromkeys(point.curve for point in points)):
        own = [point for point in points if point.curve == curve]
        _draw(ratios, own, lambda pair: pair.ratio, f"C{color}")
        _draw(seconds, own, lambda pair: 1000 * pair.chained.seconds, f"C{color}")
    ratios.set_ylabel("first token, chained / named")
    seconds.set_ylabel("first token, chained, ms")
    sizes = sorted({point.num_experts for point in points})
    for axes in (ratios, seconds):
        axes.set_xlabel("experts in the chain, the last one accepts")
        axes.set_xscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xticks([], minor=True)
        axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
        axes.legend()
    return figure


def _draw(axes: Axes, points: Sequence[Point], figure: Callable[[Pair], float], color: str) -> None:
    sizes = [point.num_experts for point in points]
    axes.plot(sizes, [point.over_pairs(figure).median for point in points], "-", color=color, label=points[0].curve)
    for point in points:
        axes.plot([point.num_experts] * len(point.pairs), [figure(pair) for pair in point.pairs], ".", color=color)


def _publish(store: Path, base: Base, chat: ChatFormat, given: argparse.Namespace, console: Console) -> None:
    sizes = pool_sizes(given.curves)
    feature = PromptFeature(base, chat)
    with progress_bar(console) as progress:
        task = progress.add_task("publishing", total=sum(sizes.values()))
        for pool, count in sizes.items():
            publish_synthetic(
                store,
                base.spec,
                _shape(pool, given.rank, all_linears(base.spec), chat),
                drafts(pool, count),
                profiles=_profiles(chain_order(pool, count), feature, chat, given),
                on_published=lambda: progress.advance(task),
            )


def _shape(pool: Pool, rank: int, targets: tuple[str, ...], chat: ChatFormat) -> Shape:
    late = chat.indicator_tokens(Indicators()).shared
    if pool == "gated":
        return Shape(rank, targets, gate=Shape(_GATE_RANK, targets, late))
    invocation = {"activated": chat.generation_prompt, "late": late, "plain": None}[pool]
    return Shape(rank, targets, invocation)


def _profiles(
    order: Sequence[str], feature: PromptFeature, chat: ChatFormat, given: argparse.Namespace
) -> dict[str, Profile]:
    """That of the accepting expert is made of prompts like those that are asked, the others are random directions."""
    texts = fresh_prompts(chat, given.prompt_tokens, given.seed + 1)
    prompts = [chat.render([{"role": "user", "content": text}]).tokens for text in islice(texts, _SAMPLES)]
    own = feature.profile(prompts)
    rng = np.random.default_rng(given.seed)

    def other() -> Profile:
        vector_D = rng.standard_normal(feature.width).astype(np.float32)
        return replace(own, vector_D=vector_D / np.linalg.norm(vector_D))

    return {name: own if name == order[-1] else other() for name in order}


def _flags(given: argparse.Namespace) -> list[str]:
    """By default there are slots for every expert, and at least for a window."""
    sizes = pool_sizes(given.curves)
    most = max(sum(sizes.values()), given.chain_window)
    slots = given.expert_slots or most * -(-given.rank // SLOT_RANK) + sizes.get("gated", 0)
    room = ["--expert-slots", slots, "--max-rank", given.rank]
    windows = ["--chain-window", given.chain_window, "--plain-window", given.plain_window]
    return [*map(str, [*room, *windows]), "--base", given.base, "--cache", str(given.cache), "--no-demo"]


def _curve(text: str) -> Curve:
    name, _, counts = text.partition("=")
    if name not in VARIANTS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(VARIANTS)}")
    if not counts:
        return Curve(name, VARIANTS[name].counts)
    return Curve(name, tuple(sorted({positive(count) for count in counts.split(",")})))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chain", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "--curve",
        dest="curves",
        metavar="NAME=COUNTS",
        type=_curve,
        action="append",
        help=f"{' or '.join(VARIANTS)}, and sizes of the chain; may be given several times; default all curves",
    )
    parser.add_argument("--pairs", type=positive, default=7, help="for each chain size; default %(default)s")
    parser.add_argument("--minutes", type=float, default=20, help="for all rounds; default %(default)s")
    parser.add_argument("--prompt-tokens", type=positive, default=200, help="with the template; default %(default)s")
    parser.add_argument("--chain-window", type=positive, default=8, help="the server's; default %(default)s")
    parser.add_argument("--plain-window", type=positive, default=2, help="the server's; default %(default)s")
    parser.add_argument("--expert-slots", type=positive, help="the server's; default enough for all experts")
    parser.add_argument("--rank", type=positive, default=8, help="of the experts; default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts; default %(default)s")
    add_base(parser)
    parser.add_argument("--label", type=label, help="write LABEL.json and LABEL.png to benchmarks/results/chain/")
    given = parser.parse_args(arguments, argparse.Namespace(arguments=list(arguments)))
    given.curves = given.curves or [Curve(name, variant.counts) for name, variant in VARIANTS.items()]
    names = [curve.name for curve in given.curves]
    if len(set(names)) != len(names):
        parser.error("--curve: a name stands there twice; give all its sizes at once")
    return given


if __name__ == "__main__":
    sys.exit(main())
