"""Weights by gradient against the obvious loop, and who is in a pool."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_store import BASE_ALIAS, Catalog, Centroid, Expert, ExpertVersion, Origin, Training, Vector
from server.engine import LogitMixture
from server.errors import RouterNotReady
from server.model.chat import Prompt
from server.model.sketch import Projection
from server.routing.gradient import Census, GradientRouter, mixture_weights
from tests.routing.test_chain import FakeProber
from tests.support.catalogs import make_version

BASE = make_version("pool-base", kind="lora", indicators=False)
ORIGIN = Origin("sha256:0", BASE.adapter_digest, "test/1", 3)
PROMPT = Prompt((1, 2, 3), 2)


def unit(values: Sequence[float]) -> Vector:
    vector = np.array(values, dtype=np.float32)
    return vector / np.linalg.norm(vector)


def expert(name: str, values: Sequence[float] | None, origin: Origin = ORIGIN) -> ExpertVersion:
    centroid = None if values is None else Centroid(origin, unit(values))
    return replace(make_version(name, kind="lora", indicators=False), centroid=centroid)


def catalog_of(*experts: ExpertVersion, bases: Sequence[ExpertVersion] = (BASE,), generation: int = 7) -> Catalog:
    entries = {e.name: Expert(e.name, {1: e}, {"live": 1}) for e in experts}
    entries |= {base.name: Expert(base.name, {1: base}, {"live": 1, BASE_ALIAS: 1}) for base in bases}
    return Catalog(generation, MappingProxyType(entries), ())


class FixedSource:
    """Every prompt is the same vector."""

    base_fingerprint = "sha256:0"
    feature = "test/1"

    def __init__(self, values: Sequence[float]) -> None:
        self._vector = unit(values)
        self.asked: list[tuple[str, int, int]] = []

    async def of(self, base: ExpertVersion, prompt: Prompt, *, width: int, seed: int) -> Vector:
        assert prompt.tokens
        self.asked.append((base.ref, width, seed))
        return self._vector


@settings(deadline=None)
@given(st.lists(st.integers(-100, 100), min_size=1, max_size=12, unique=True), st.integers(1, 16))
def test_weights_are_the_softmax_of_standardised_scores(hundredths: list[int], num_experts: int) -> None:
    scores = [value / 100 for value in hundredths]
    mean = sum(scores) / len(scores)
    spread = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores)) or 1.0
    powers = [math.exp((s - mean) / spread) for s in scores]
    kept = sorted(range(len(scores)), key=lambda i: -scores[i])[:num_experts]
    total = sum(powers[i] for i in kept)
    expected = [powers[i] / total if i in kept else 0 for i in range(len(scores))]
    assert mixture_weights(scores, num_experts) == pytest.approx(expected)


def test_of_equal_experts_the_first_are_taken() -> None:
    assert mixture_weights([0.5, 0.5, 0.5], 2) == [0.5, 0.5, 0.0]


def routed(router: GradientRouter, catalog: Catalog) -> LogitMixture:
    decision = asyncio.run(router.plan(catalog).route(PROMPT, FakeProber({}), None))
    assert isinstance(decision.answerer, LogitMixture)
    assert (decision.router, decision.reason, decision.fallback) == ("gradient", "weighted", False)
    return decision.answerer


def test_the_nearest_experts_are_mixed_with_the_base_adapter() -> None:
    source = FixedSource([1, 0, 0])
    experts = [expert("far", [-1, 0, 0]), expert("near", [1, 0.1, 0]), expert("beside", [0, 1, 0]), expert("new", None)]
    catalog = catalog_of(*experts)
    mixture = routed(GradientRouter(source, num_experts=2), catalog)
    assert mixture.base == BASE
    assert mixture.base_weight == pytest.approx(1 / 3)
    assert [share.expert.name for share in mixture.shares] == ["near", "beside"]
    assert sum(share.weight for share in mixture.shares) == pytest.approx(1)
    assert source.asked == [("pool-base@1", 3, 3)]
    everybody = routed(GradientRouter(source, num_experts=16, base_weight=0.7), catalog)
    assert (len(everybody.shares), everybody.base_weight) == (3, 0.7)


def test_who_cannot_wake_is_not_mixed_unless_nobody_can() -> None:
    catalog = catalog_of(expert("a", [1, 0]), expert("b", [0.9, 0.1]), expert("c", [0, 1]))
    plan = GradientRouter(FixedSource([1, 0]), num_experts=1).plan(catalog)
    session = FakeProber({})

    def chosen(*asleep: str) -> list[str]:
        session.asleep = set(asleep)
        mixture = asyncio.run(plan.route(PROMPT, session, None)).answerer
        assert isinstance(mixture, LogitMixture)
        return [share.expert.name for share in mixture.shares]

    assert (chosen(), chosen("a"), chosen("a", "b"), chosen("a", "b", "c")) == (["a"], ["b"], ["c"], ["a"])


def test_a_plan_reserves_room_for_every_branch_and_reads_the_whole_pool() -> None:
    plan = GradientRouter(FixedSource([1, 0]), num_experts=2).plan(catalog_of(expert("a", [1, 0])))
    assert plan.branches(None).mixed == 2
    assert [version.name for version in plan.readable] == ["pool-base", "a"]


def test_all_of_the_pool_are_considered_with_their_cosines() -> None:
    plan = GradientRouter(FixedSource([1, 0]), num_experts=1).plan(catalog_of(expert("a", [1, 0]), expert("b", [1, 1])))
    considered = asyncio.run(plan.route(PROMPT, FakeProber({}), None)).considered
    assert [(c.expert, c.accepted) for c in considered] == [("a", True), ("b", False)]
    assert [c.score for c in considered] == pytest.approx([1, 0.5**0.5])


@pytest.mark.parametrize(
    ("catalog", "says"),
    [
        (Catalog(), "no version has the alias gradient-base"),
        (catalog_of(expert("a", [1, 0]), bases=()), "no version has the alias gradient-base"),
        (catalog_of(bases=(BASE, make_version("other", kind="lora"))), "pool-base@1, other@1 all have the alias"),
        (catalog_of(bases=(make_version("act"),)), "act@1 .* must be a plain LoRA"),
        (catalog_of(expert("a", None)), "no expert has a centroid made with base adapter pool-base@1"),
        (catalog_of(expert("a", [1, 0], replace(ORIGIN, base_adapter="sha256:9"))), "a@1 .* sha256:9, the pool's is"),
        (catalog_of(expert("a", [1, 0], replace(ORIGIN, base_fingerprint="sha256:8"))), "a@1 .* made on base sha256:8"),
        (catalog_of(expert("a", [1, 0], replace(ORIGIN, feature="test/2"))), "a@1 .* 'test/2'"),
        (
            catalog_of(expert("a", [1, 0]), expert("b", [1, 0, 0])),
            "a@1, b@1 were projected differently: seed 3 to 2, seed 3 to 3",
        ),
    ],
)
def test_what_a_pool_lacks_is_said(catalog: Catalog, says: str) -> None:
    router = GradientRouter(FixedSource([1, 0]))
    status = router.status(catalog)
    assert not status.ready
    assert status.way_out is not None
    with pytest.raises(RouterNotReady, match=says):
        router.plan(catalog)


def test_experts_of_another_pool_are_left_out() -> None:
    stranger = expert("stranger", [1, 0], replace(ORIGIN, base_adapter="sha256:9"))
    mixture = routed(GradientRouter(FixedSource([1, 0])), catalog_of(stranger, expert("a", [1, 0])))
    assert [share.expert.name for share in mixture.shares] == ["a"]


class Shelf:
    """Centroids made so far, by the expert's name; everybody wanting is pending until then."""

    def __init__(self) -> None:
        self.made: dict[str, Centroid] = {}
        self.failed: set[str] = set()

    @property
    def revision(self) -> int:
        return len(self.made) + len(self.failed)

    def get(self, expert: ExpertVersion, census: Census) -> Centroid | None:
        assert expert in census.wanting
        return self.made.get(expert.name)

    def num_pending(self, census: Census) -> int:
        return sum(expert.name not in {*self.made, *self.failed} for expert in census.wanting)

    def problems(self, census: Census) -> tuple[str, ...]:
        return tuple(f"{expert.ref} gets none" for expert in census.wanting if expert.name in self.failed)


def with_samples(version: ExpertVersion, recipe: str | None = None) -> ExpertVersion:
    training = (
        None if recipe is None else Training(recipe=recipe, seed=1, data_digest="sha256:" + "a" * 64, rows=1, epochs=1)
    )
    manifest = version.manifest.model_copy(update={"samples": ("hi",), "training": training})
    return replace(version, manifest=manifest)


def test_who_wants_a_centroid_joins_as_soon_as_it_is_made() -> None:
    shelf = Shelf()
    router = GradientRouter(FixedSource([1, 0]), made=shelf)
    other = replace(ORIGIN, base_adapter="sha256:9")
    catalog = catalog_of(
        expert("a", [1, 0]),
        with_samples(expert("early", None)),
        with_samples(expert("moved", [1, 0], other)),  # made with another base adapter, of samples
        with_samples(expert("theirs", [1, 0], other), recipe="elrea"),  # that adapter's own pool
        expert("silent", None),
    )
    assert (router.status(catalog).ready, router.status(catalog).pending) == (True, 2)
    assert [share.expert.name for share in routed(router, catalog).shares] == ["a"]
    shelf.made["early"] = Centroid(ORIGIN, unit([1, 0.5]))
    assert router.status(catalog).pending == 1
    assert {share.expert.name for share in routed(router, catalog).shares} == {"a", "early"}
    shelf.made["moved"] = Centroid(ORIGIN, unit([1, -0.5]))
    assert router.status(catalog).pending == 0
    considered = {c.expert for c in asyncio.run(router.plan(catalog).route(PROMPT, FakeProber({}), None)).considered}
    assert considered == {"a", "early", "moved"}


def test_a_pool_may_be_made_of_samples_alone_and_then_has_the_usual_projection() -> None:
    shelf, source = Shelf(), FixedSource([1, *[0] * (Projection().width - 1)])
    router = GradientRouter(source, made=shelf)
    catalog = catalog_of(with_samples(expert("early", None)))
    status = router.status(catalog)
    assert (status.ready, status.pending, status.way_out) == (False, 1, None)
    assert status.missing == (
        "centroids of 1 experts are being made with base adapter pool-base@1: wait for the first",
    )
    with pytest.raises(RouterNotReady, match=r"wait for the first$"):
        router.plan(catalog)
    shelf.made["early"] = Centroid(replace(ORIGIN, projection_seed=0), unit([1] * Projection().width))
    assert [share.expert.name for share in routed(router, catalog).shares] == ["early"]
    assert source.asked == [("pool-base@1", Projection().width, Projection().seed)]


def test_a_newer_catalog_gets_its_own_pool_and_an_older_one_keeps_its_own() -> None:
    router = GradientRouter(FixedSource([1, 0]))
    newer = catalog_of(expert("a", [1, 0]), expert("b", [0, 1]), generation=8)
    older = catalog_of(expert("a", [1, 0]), generation=7)
    assert len(routed(router, newer).shares) == 2
    assert len(routed(router, older).shares) == 1
    assert len(routed(router, newer).shares) == 2
    assert router.status(newer).version == 1


def test_who_gets_no_centroid_is_named_and_keeps_nobody_else_out() -> None:
    shelf = Shelf()
    router = GradientRouter(FixedSource([1, 0]), made=shelf)
    alone = catalog_of(with_samples(expert("early", None)))
    shelf.failed.add("early")
    status = router.status(alone)
    assert (status.pending, status.problems) == (0, ("early@1 gets none",))
    assert status.missing[-1] == "early@1 gets none"
    assert "relay train elrea" in str(status.way_out)
    beside = router.status(replace(catalog_of(with_samples(expert("early", None)), expert("a", [1, 0])), generation=9))
    assert (beside.ready, beside.missing, beside.problems) == (True, (), ("early@1 gets none",))
