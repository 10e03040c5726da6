"""Puts rows to one server under each of its routers, in turns, and scores the answers. Knows no stores, no tables."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from benchmarks.copied_store import NotMeasurable
from server.routing import RouterName, ScoringRouter
from training.evaluate.scores import exact, rouge_l
from training.evaluate.stream import Sample, Task

SHADOWS: tuple[ScoringRouter, ...] = ("gradient", "learned")
ROUTERS: tuple[RouterName, ...] = ("chain", *SHADOWS, "none")
_SHOWN_CHARS = 200
Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Answered:
    """One answer. `leader` is the expert with the largest weight, None the base; `seen` are all experts that were
    asked or weighed. Scores are in percent, times milliseconds by the server's own clock, from arrival."""

    router: RouterName
    sample: str
    task: str
    leader: str | None
    seen: frozenset[str]
    fallback: bool
    rouge_l: float
    exact: float
    routing_ms: float
    first_token_ms: float
    total_ms: float
    computed_tokens: int


@dataclass(frozen=True)
class Agreed:
    """What a router, scored beside the chain, said of one row: whether the same expert leads; None: it said nothing."""

    router: ScoringRouter
    agreed: bool | None
    ms: float


@dataclass(frozen=True)
class Failed:
    """An answer that did not come; `router` is the one that was to decide."""

    router: RouterName
    reason: str


def mixed(tasks: Sequence[Task], count: int, *, seed: int) -> list[Sample]:
    """So many rows of all tasks at random; none twice before all have come."""
    rows = [sample for task in tasks for sample in task.held_out]
    rng = random.Random(f"mixed {seed}")
    rounds = math.ceil(count / len(rows))
    return [sample for _ in range(rounds) for sample in rng.sample(rows, len(rows))][:count]


def in_turns(samples: Sequence[Sample]) -> list[tuple[RouterName, Sample]]:
    """Each row under each router, one right behind the other; who comes first changes from row to row."""
    return [
        (ROUTERS[(first + turn) % len(ROUTERS)], sample)
        for first, sample in enumerate(samples)
        for turn in range(len(ROUTERS))
    ]


class Questions:
    """One server, and how long answers may be. Any number of threads may ask.

    A router that is not ready any more (409) raises NotMeasurable; whatever else goes wrong is an outcome.
    """

    def __init__(self, client: httpx.Client, *, answer_tokens: int) -> None:
        self._client = client
        self._answer_tokens = answer_tokens

    def answer(self, router: RouterName, sample: Sample) -> Answered | Failed:
        request = {
            "prompt": sample.prompt,
            "router": router,
            "guard": False,
            "max_new_tokens": self._answer_tokens,
        }
        said = self._sent("/generate", router, request)
        return said if isinstance(said, Failed) else _answered(router, sample, said)

    def shadows(self, sample: Sample) -> list[Agreed] | Failed:
        """A dry run of the chain, with the others scored beside it."""
        said = self._sent(
            "/route", "chain", {"prompt": sample.prompt, "router": "chain", "guard": False, "shadow": list(SHADOWS)}
        )
        if isinstance(said, Failed):
            return said
        return [Agreed(one["router"], one["agreed"], one["ms"]) for one in said["routing"]["shadow"]]

    def _sent(self, path: str, router: RouterName, request: Mapping[str, Any]) -> dict[str, Any] | Failed:
        try:
            response = self._client.post(path, json=dict(request))
        except httpx.HTTPError as error:
            return Failed(router, f"{type(error).__name__}: {error}"[:_SHOWN_CHARS])
        if response.status_code == 409:
            raise NotMeasurable(response.json()["error"]["message"])
        if not response.is_success:
            return Failed(router, f"status {response.status_code}: {response.text[:_SHOWN_CHARS]}")
        said: dict[str, Any] = response.json()
        return said


def ask_all(
    ask: Callable[[Job], Outcome], jobs: Sequence[Job], *, concurrency: int, on_done: Callable[[], None]
) -> Iterator[Outcome]:
    """So many at a time; outcomes in the order of the jobs. The first exception ends it: what has not begun is left."""
    with ThreadPoolExecutor(concurrency) as pool:
        for outcome in pool.map(ask, jobs):
            on_done()
            yield outcome


def own_experts(tasks: Sequence[str], given: Mapping[str, str], pool: Sequence[str]) -> dict[str, str]:
    """Task to the expert that was trained on it: as given, or else the one called like it or ending in -TASK.

    Raises NotMeasurable for one that is not there.
    """
    strange = sorted(set(given) - set(tasks)) + sorted(set(given.values()) - set(pool))
    if strange:
        raise NotMeasurable(f"--own: {', '.join(strange)}: tasks are {', '.join(tasks)}; experts {', '.join(pool)}")
    own = dict(given)
    for task in tasks:
        called = [name for name in pool if name == task or name.endswith(f"-{task}")]
        if task not in own and len(called) == 1:
            own[task] = called[0]
    return own


def _answered(router: RouterName, sample: Sample, said: Mapping[str, Any]) -> Answered:
    routing, timings = said["routing"], said["timings"]
    shares = {share["expert"]: share["weight"] for share in routing["experts"]}
    return Answered(
        router=router,
        sample=sample.id,
        task=sample.task,
        leader=max(shares, key=lambda name: shares[name], default=None),
        seen=frozenset(shares) | {one["expert"] for one in routing["considered"]},
        fallback=routing["fallback"],
        rouge_l=rouge_l(said["text"], sample.output),
        exact=exact(said["text"], sample.output),
        routing_ms=timings["routing_ms"],
        first_token_ms=timings["first_token_ms"],
        total_ms=timings["total_ms"],
        computed_tokens=said["usage"]["computed_tokens"],
    )
