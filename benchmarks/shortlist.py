"""Is the right expert on a shortlist, do guards know strangers, what does choosing take? Profiles alone, no server.

    python -m benchmarks.shortlist                        # the demo tasks among kinds of general prompts
    python -m benchmarks.shortlist --data FOLDER          # and KEY.train.jsonl, KEY.eval.jsonl of further tasks

Every task is one expert of a pool: its profile comes from training rows, or from four samples as a registration
without a profile has them. Queries are held-out rows; recall@k is the share of them whose own expert is among the k
proposed. The demo tasks' held-out rows are in wordings that stand in no training row. A general prompt of one kind
often suits another kind just as well ("greetings", "thanks"): those tasks are here to be distractors, their own recall
is a lower bound. Guards are fitted to a task's training rows, seen from general prompts, as `relay train see` does with
nothing else for negatives. Lookups are timed on profiles of random direction, from the prompt's tokens to the proposed
experts.

Prints three tables and writes benchmarks/results/shortlist.json.
"""

import argparse
import json
import random
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from expert_store import Catalog, Expert, ExpertVersion, FileRecord, Guard, Indicators, Manifest, Profile, Vector
from server.environment import describe_run
from server.model.base import load_base
from server.model.chat import ChatFormat
from server.model.feature import FEATURE, PromptFeature
from server.routing import ShortlistIndex, Shortlists
from training.commands import default_cache
from training.data import read_rows
from training.demo import general
from training.demo.general_held_out import HELD_OUT
from training.demo.tasks import TASKS, general_rows, rows
from training.guard import fit_guard

RESULTS = Path(__file__).parent / "results" / "shortlist.json"
SIZES = (1, 4, 8)
POOL_SIZES = (64, 512, 10_000)
NUM_SAMPLES = 4
NUM_LOOKUPS = 200
NUM_NEGATIVES = 400
NUM_STRANGERS = 170


@dataclass(frozen=True)
class Task:
    """One expert of the pool. `samples` are what a manifest would hold."""

    name: str
    group: str
    training: tuple[str, ...]
    samples: tuple[str, ...]
    queries: tuple[str, ...]


@dataclass(frozen=True)
class Recall:
    """Of a group's queries, each task counting its own; `at[k]` is the share whose expert is among k proposed."""

    group: str
    profiles_from: str
    num_experts: int
    num_queries: int
    at: Mapping[int, float]


@dataclass(frozen=True)
class Guarded:
    """Shares of a group's queries: of its own that a task's guard knows, of the other tasks' of the group, of general
    prompts in wordings that no guard was shown."""

    group: str
    num_experts: int
    own: float
    others: float
    general: float


@dataclass(frozen=True)
class Lookup:
    """Milliseconds. `propose_ms` is a whole shortlist, `guarded_ms` one for which all guards are asked, `index_ms`
    builds the index of a new catalog."""

    num_profiles: int
    propose_ms: float
    propose_p95_ms: float
    guarded_ms: float
    index_ms: float


def main(arguments: Sequence[str] | None = None, *, results: Path = RESULTS) -> int:
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    base = load_base(given.base, cache=given.cache)
    chat = ChatFormat(base.tokenizer)
    feature = PromptFeature(base, chat)
    tasks = [*demo_tasks(given.rows, given.queries), *general_tasks(given.rows, given.queries)]
    tasks += [] if given.data is None else file_tasks(given.data, given.rows, given.queries)
    recalls = [found for source in ("rows", "samples") for found in measure_recall(tasks, source, chat, feature)]
    guards = measure_guards(tasks, chat, feature)
    prompts = [_tokens(chat, query) for task in tasks for query in task.queries]
    lookups = [measure_lookup(count, prompts, feature) for count in given.pool_sizes]
    console.print(recall_table(recalls), guard_table(guards), lookup_table(lookups))
    said = [Path(argument).name if "/" in argument else argument for argument in given.arguments]
    about = describe_run(shlex.join(["python", "-m", "benchmarks.shortlist", *said]))
    measured: dict[str, Sequence[Any]] = {"recall": recalls, "guards": guards, "lookup": lookups}
    found = {name: [asdict(one) for one in some] for name, some in measured.items()}
    results.write_text(json.dumps({**about, "feature": FEATURE, **found}, indent=1) + "\n")
    return 0


def demo_tasks(num_rows: int, num_queries: int) -> list[Task]:
    """The five demo experts' tasks; samples are those of their manifests."""
    found = []
    for name, task in TASKS.items():
        training, held_out = (
            tuple(row.input for row in rows(name, count, 0, held))
            for count, held in ((num_rows, False), (num_queries, True))
        )
        found.append(Task(name, "demo", training, task.samples[:NUM_SAMPLES], held_out))
    return found


def general_tasks(num_rows: int, num_queries: int) -> list[Task]:
    """Each kind of general prompt as a task of its own; queries are held-out prompts where the kind has some."""
    found = []
    for kind in general.CATEGORIES:
        rng = random.Random(f"shortlist/{kind}")
        drawn = tuple(dict.fromkeys(general.draw(rng, kind) for _ in range(num_rows)))
        kept = len(drawn) if kind in HELD_OUT else len(drawn) * 2 // 3
        queries = tuple(HELD_OUT.get(kind, drawn[kept:]))[:num_queries]
        if kept >= NUM_SAMPLES and queries:
            found.append(Task(kind, "general", drawn[:kept], drawn[:NUM_SAMPLES], queries))
    return found


def file_tasks(folder: Path, num_rows: int, num_queries: int) -> list[Task]:
    """KEY.train.jsonl and KEY.eval.jsonl, once with and once without the rows' definitions, as two pools would."""
    found = []
    for path in sorted(folder.glob("*.train.jsonl")):
        key = path.name.removesuffix(".train.jsonl")
        training, queries = (
            tuple(row.input for row in read_rows(folder / f"{key}.{part}.jsonl", answers=False).rows[:count])
            for part, count in (("train", num_rows), ("eval", num_queries))
        )
        found.append(Task(key, "data", training, training[:NUM_SAMPLES], queries))
        training, queries = (
            tuple(str(row["input"]) for row in _lines(folder / f"{key}.{part}.jsonl")[:count])
            for part, count in (("train", num_rows), ("eval", num_queries))
        )
        found.append(Task(key, "data, bare inputs", training, training[:NUM_SAMPLES], queries))
    return found


def measure_recall(tasks: Sequence[Task], source: str, chat: ChatFormat, feature: PromptFeature) -> list[Recall]:
    """One pool of the demo and general tasks, and of one form of the data's; every query of every group asked."""
    forms = [group for group in ("data", "data, bare inputs") if any(task.group == group for task in tasks)]
    found: dict[str, Recall] = {}
    for form in forms or [""]:
        pool = [task for task in tasks if task.group in ("demo", "general", form)]
        for recall in _recall_of_pool(pool, source, chat, feature):
            found.setdefault(recall.group, recall)
    return list(found.values())


def _recall_of_pool(pool: Sequence[Task], source: str, chat: ChatFormat, feature: PromptFeature) -> list[Recall]:
    texts = [task.training if source == "rows" else task.samples for task in pool]
    profiles = [feature.profile(_tokens(chat, text) for text in some) for some in texts]
    experts = [placeholder(f"task-{number}", profile) for number, profile in enumerate(profiles)]
    index = ShortlistIndex(experts, FEATURE)
    hits: dict[str, list[list[bool]]] = {}
    for task, expert in zip(pool, experts, strict=True):
        for query in task.queries:
            vector_D = feature.of(_tokens(chat, query))
            hits.setdefault(task.group, []).append([expert in index.nearest(vector_D, size) for size in SIZES])
    return [
        Recall(group, source, len(pool), len(found), dict(zip(SIZES, np.mean(found, axis=0).tolist(), strict=True)))
        for group, found in hits.items()
    ]


def measure_guards(tasks: Sequence[Task], chat: ChatFormat, feature: PromptFeature) -> list[Guarded]:
    """Every group but the general one; tasks with too few training rows for a guard are left out."""

    def features(texts: Iterable[str]) -> list[Vector]:
        return [feature.of(_tokens(chat, text)) for text in texts]

    negatives = features(row.input for row in general_rows(NUM_NEGATIVES, 0, held_out=False))
    strangers = np.stack(features(row.input for row in general_rows(NUM_STRANGERS, 0, held_out=True)))
    found = []
    for group in dict.fromkeys(task.group for task in tasks if task.group != "general"):
        members = [task for task in tasks if task.group == group]
        fitted = [(task.name, fit_guard(features(task.training), [], negatives)) for task in members]
        guards = {name: guard for name, guard in fitted if guard is not None}
        queries = {task.name: np.stack(features(task.queries)) for task in members}
        if guards:
            own = [guard.knows(queries[name]).mean() for name, guard in guards.items()]
            pairs = [(guards[name], key) for name in guards for key in queries if key != name]
            others = [guard.knows(queries[key]).mean() for guard, key in pairs]
            general = [guard.knows(strangers).mean() for guard in guards.values()]
            shares = (float(np.mean(some)) if some else 0.0 for some in (own, others, general))
            found.append(Guarded(group, len(guards), *shares))
    return found


def measure_lookup(num_profiles: int, prompts: Sequence[Sequence[int]], feature: PromptFeature) -> Lookup:
    """Medians over prompts, after the first lookup has built the index."""
    rng = np.random.default_rng(0)
    experts = [placeholder(f"task-{number}", _random_profile(rng, feature.width)) for number in range(num_profiles)]
    entries = {expert.name: Expert(expert.name, {1: expert}, {"live": 1}) for expert in experts}
    catalog = Catalog(1, entries, tuple(entries))
    shortlists = Shortlists(feature)
    first = shortlists.propose(catalog, prompts[0], 8).seconds
    times = sorted(shortlists.propose(catalog, tokens, 8).seconds for tokens in prompts[:NUM_LOOKUPS])
    median, p95 = statistics.median(times), times[int(0.95 * len(times))]
    guarded = statistics.median(
        shortlists.propose(catalog, tokens, 8, guarded=True).seconds for tokens in prompts[:NUM_LOOKUPS]
    )
    return Lookup(num_profiles, 1000 * median, 1000 * p95, 1000 * guarded, 1000 * (first - median))


def placeholder(name: str, profile: Profile) -> ExpertVersion:
    """An expert that has a profile and nothing else."""
    manifest = Manifest(
        name=name,
        version=1,
        kind="lora",
        rank=1,
        target_modules=("none",),
        parameters=1,
        invocation_tokens=None,
        base_fingerprint=profile.base_fingerprint,
        description="",
        samples=(),
        indicators=Indicators(),
        threshold=0.5,
        training=None,
        quality={},
        files={"adapter_model.safetensors": FileRecord(sha256="0" * 64, size_bytes=1)},
        created_at=datetime.now(UTC),
    )
    return ExpertVersion(manifest, name, Path(name), profile)


def recall_table(recalls: Iterable[Recall]) -> Table:
    table = Table("queries of", "profiles from", "experts", "queries", *(f"recall@{size}" for size in SIZES))
    for one in recalls:
        shares = [f"{one.at[size]:.3f}" for size in SIZES]
        table.add_row(one.group, one.profiles_from, str(one.num_experts), str(one.num_queries), *shares)
    return table


def guard_table(guards: Iterable[Guarded]) -> Table:
    table = Table("guards of", "experts", "own queries known", "the other tasks' known", "general prompts known")
    for one in guards:
        shares = (one.own, one.others, one.general)
        table.add_row(one.group, str(one.num_experts), *(f"{share:.3f}" for share in shares))
    return table


def lookup_table(lookups: Iterable[Lookup]) -> Table:
    table = Table("profiles", "lookup ms, median", "p95", "with guards", "building the index, ms")
    for one in lookups:
        numbers = (one.propose_ms, one.propose_p95_ms, one.guarded_ms, one.index_ms)
        table.add_row(str(one.num_profiles), *(f"{number:.3f}" for number in numbers))
    return table


def _random_profile(rng: np.random.Generator, width: int) -> Profile:
    """With a guard that knows half of all prompts."""
    vector_D, direction_D = (some / np.linalg.norm(some) for some in rng.standard_normal((2, width), dtype=np.float32))
    return Profile("sha256:0", FEATURE, vector_D, Guard(vector_D / 2, direction_D, 0.0))


def _tokens(chat: ChatFormat, text: str) -> tuple[int, ...]:
    return chat.render([{"role": "user", "content": text}]).tokens


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shortlist", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--rows", type=int, default=200, help="training rows a profile; default %(default)s")
    parser.add_argument("--queries", type=int, default=40, help="held-out rows a task; default %(default)s")
    parser.add_argument("--data", type=Path, metavar="PATH", help="folder of KEY.train.jsonl and KEY.eval.jsonl")
    parser.add_argument("--pool-sizes", type=int, nargs="+", default=POOL_SIZES, help="profiles to time lookups among")
    parser.add_argument("--base", default="bundled", help="default %(default)s")
    parser.add_argument("--cache", type=Path, default=default_cache())
    return parser.parse_args(arguments, argparse.Namespace(arguments=list(arguments)))


if __name__ == "__main__":
    sys.exit(main())
