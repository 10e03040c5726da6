"""The index against the obvious loop, and the chain that asks a shortlist against the chain that asks all."""

import asyncio
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from expert_store import Catalog, Expert, ExpertVersion, Guard, Kind, Profile, Vector
from server.engine import Branches
from server.routing import ChainRouter, Shortlist, ShortlistIndex, Shortlists
from tests.routing.test_chain import FakeProber
from tests.support.catalogs import make_version

WIDTH = 6
FEATURE = "test/1"


def unit(values: Sequence[float]) -> Vector:
    vector = np.array(values, dtype=np.float32)
    return vector / np.linalg.norm(vector)


def expert(
    number: int,
    values: Sequence[float] | None,
    *,
    feature: str = FEATURE,
    kind: Kind = "alora",
    guard: Guard | None = None,
) -> ExpertVersion:
    profile = None if values is None else Profile("sha256:0", feature, unit(values), guard)
    return make_version(f"e{number}", kind=kind, profile=profile)


def catalog_of(experts: Sequence[ExpertVersion], generation: int = 7) -> Catalog:
    entries = {version.name: Expert(version.name, {1: version}, {"live": 1}) for version in experts}
    return Catalog(generation, MappingProxyType(entries), tuple(entries))


class FixedFeature:
    """Every prompt is the same vector; counts the indexes that are built for it, each of which asks its name once."""

    def __init__(self, values: Sequence[float]) -> None:
        self._vector = unit(values)
        self.num_built = 0

    @property
    def name(self) -> str:
        self.num_built += 1
        return FEATURE

    def of(self, tokens: Sequence[int]) -> Vector:
        assert tokens
        return self._vector


def closeness(experts: Sequence[ExpertVersion], query: Vector) -> dict[str, float]:
    """The obvious loop: each profile and the prompt as seen from the middle of all profiles, one cosine at a time."""
    profiles = {e.name: e.profile.vector_D for e in experts if e.profile is not None and e.profile.feature == FEATURE}
    middle = sum(profiles.values()) / len(profiles)
    found = {}
    for name, profile in profiles.items():
        away = profile - middle
        found[name] = float((query - middle) @ away) / max(float(np.linalg.norm(away)), 1e-30)
    return found


VECTORS = st.lists(st.integers(-9, 9), min_size=WIDTH, max_size=WIDTH).filter(any)
POOLS = st.lists(st.none() | VECTORS, min_size=1, max_size=24)


@settings(max_examples=300, deadline=None)
@given(POOLS, VECTORS, st.integers(1, 26))
def test_the_index_proposes_whom_the_loop_finds_nearest(
    pool: list[list[int] | None], query: list[int], size: int
) -> None:
    experts = [expert(number, values) for number, values in enumerate(pool)]
    proposed = ShortlistIndex(experts, FEATURE).nearest(unit(query), size)
    names = [version.name for version in proposed]
    assert names == [e.name for e in experts if e.name in names], "in chain order, nobody twice"
    profiled = [e.name for e in experts if e.profile is not None]
    assert {e.name for e in experts if e.profile is None} <= set(names), "nobody without a profile is left out"
    chosen = [name for name in names if name in profiled]
    assert len(chosen) == min(size, len(profiled))
    if len(profiled) > size:
        near = closeness(experts, unit(query))
        assert min(near[name] for name in chosen) >= max(near[n] for n in profiled if n not in chosen) - 1e-5


GUARDS = st.none() | st.builds(
    lambda centre, direction, least: Guard(np.float32(0.05) * np.array(centre, np.float32), unit(direction), least),
    st.lists(st.integers(-9, 9), min_size=WIDTH, max_size=WIDTH),
    VECTORS,
    st.floats(-1, 1, width=16),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.none() | st.tuples(VECTORS, GUARDS), min_size=1, max_size=24), VECTORS, st.integers(0, 26))
def test_whom_guards_leave_out_is_whom_the_loop_finds_unlike(
    pool: list[tuple[list[int], Guard | None] | None], query: list[int], size: int
) -> None:
    experts = [expert(i, *((None,) if one is None else one[:1]), guard=one and one[1]) for i, one in enumerate(pool)]
    feature = unit(query)
    known = [e for e in experts if e.profile is None or e.profile.guard is None or e.profile.guard.knows(feature[None])]
    close = [
        abs(float((feature - g.centre_D) @ g.direction_D) - g.least * float(np.linalg.norm(feature - g.centre_D)))
        for e in experts
        if e.profile is not None and (g := e.profile.guard) is not None
    ]
    assume(min(close, default=1.0) > 1e-5)
    index = ShortlistIndex(experts, FEATURE)
    found, num_unfamiliar = index.familiar(feature, size)
    assert num_unfamiliar == len(experts) - len(known)
    if size == 0:
        assert list(found) == known
    profiled = [e for e in known if e.profile is not None]
    assert len(found) == len(known) - max(0, len(profiled) - (size or len(profiled)))
    assert set(found) <= set(known)


@pytest.mark.parametrize(("least", "asked"), [(0.6, ["e0", "e1"]), (0.9, ["e0"])])
def test_the_chain_does_not_ask_to_whom_a_prompt_is_unfamiliar(least: float, asked: list[str]) -> None:
    guard = Guard(np.zeros(WIDTH, np.float32), unit([1, 1, 0, 0, 0, 0]), least)
    catalog = catalog_of([expert(0, None), expert(1, [1] * WIDTH, guard=guard)])
    shortlist = Shortlists(FixedFeature([1, 0, 0, 0, 0, 0])).propose(catalog, (1,), 0, guarded=True)
    assert route(catalog, {"e0": -1.0, "e1": 2.0}, shortlist) == ("e1" if "e1" in asked else None, asked)
    assert (shortlist.num_unfamiliar, shortlist.num_left_out) == (2 - len(asked), 0)
    assert Shortlists(FixedFeature([1, 0, 0, 0, 0, 0])).propose(catalog, (1,), 0).experts == catalog.chain_experts


def test_a_catalog_is_guarded_where_one_of_its_chain_is() -> None:
    guard = Guard(np.zeros(WIDTH, np.float32), unit([1] * WIDTH), 0.5)
    assert not catalog_of([expert(0, None), expert(1, [1] * WIDTH)]).guarded
    assert catalog_of([expert(0, None), expert(1, [1] * WIDTH, guard=guard)]).guarded


def test_of_equally_near_experts_the_first_in_the_chain_are_proposed() -> None:
    experts = [expert(number, [1, number % 2, 0, 0, 0, 0]) for number in range(8)]
    proposed = ShortlistIndex(experts, FEATURE).nearest(unit([1, 1, 0, 0, 0, 0]), 2)
    assert [version.name for version in proposed] == ["e1", "e3"]


def test_a_profile_of_another_feature_counts_as_none() -> None:
    experts = [expert(0, [1] * WIDTH, feature="other/2"), expert(1, [1] * WIDTH), expert(2, [1, 0, 0, 0, 0, 0])]
    index = ShortlistIndex(experts, FEATURE)
    assert index.num_unprofiled == 1
    assert [version.name for version in index.nearest(unit([1, 0, 0, 0, 0, 0]), 1)] == ["e0", "e2"]


@pytest.mark.parametrize("pool", [[], [None, None]])
def test_a_pool_without_profiles_is_asked_whole(pool: list[None]) -> None:
    experts = [expert(number, values) for number, values in enumerate(pool)]
    assert ShortlistIndex(experts, FEATURE).nearest(unit([1] * WIDTH), 1) == tuple(experts)


def route(catalog: Catalog, logits: dict[str, float], shortlist: Shortlist | None) -> tuple[str | None, list[str]]:
    """(who answers, who was asked)."""
    decision = asyncio.run(ChainRouter(window=3, plain_window=2).route(catalog, FakeProber(logits), shortlist))
    assert decision.shortlist is shortlist
    return decision.expert and decision.expert.name, [asked.expert for asked in decision.considered]


LOGITS = st.lists(st.floats(-4, 4), min_size=24, max_size=24)


@settings(max_examples=100, deadline=None)
@given(POOLS, LOGITS, st.integers(0, 5))
def test_a_shortlist_as_large_as_the_pool_is_the_exact_chain(
    pool: list[list[int] | None], logits: list[float], more: int
) -> None:
    catalog = catalog_of([expert(number, values) for number, values in enumerate(pool)])
    answers = {name: logits[i] for i, name in enumerate(catalog.chain)}
    shortlist = Shortlists(FixedFeature([1] * WIDTH)).propose(catalog, (1, 2), len(pool) + more)
    assert (shortlist.num_left_out, shortlist.num_chain) == (0, len(pool))
    assert route(catalog, answers, shortlist) == route(catalog, answers, None)


@settings(max_examples=100, deadline=None)
@given(POOLS, LOGITS, st.integers(1, 6))
def test_a_shortlisted_chain_answers_as_a_chain_of_the_proposed_alone(
    pool: list[list[int] | None], logits: list[float], size: int
) -> None:
    catalog = catalog_of([expert(number, values) for number, values in enumerate(pool)])
    answers = {name: logits[i] for i, name in enumerate(catalog.chain)}
    shortlist = Shortlists(FixedFeature([1, 0, 0, 0, 0, 0])).propose(catalog, (1,), size)
    assert shortlist.num_proposed + shortlist.num_unprofiled + shortlist.num_left_out == len(pool)
    assert route(catalog, answers, shortlist) == route(catalog_of(shortlist.experts), answers, None)


def test_a_shortlist_reserves_for_its_own_experts_alone() -> None:
    kinds = ["alora", "lora"] * 10
    catalog = catalog_of([expert(i, [1, i, 0, 0, 0, 0], kind=kind) for i, kind in enumerate(kinds)])
    shortlist = Shortlists(FixedFeature([1, 19, 0, 0, 0, 0])).propose(catalog, (1,), 3)
    router = ChainRouter(window=8, plain_window=4)
    activated = sum(version.kind == "alora" for version in shortlist.experts)
    assert router.branches(catalog, shortlist) == Branches(activated=activated, plain=3 - activated)
    assert router.branches(catalog) == Branches(activated=8, plain=4)


def test_the_index_is_built_once_a_catalog() -> None:
    feature = FixedFeature([1] * WIDTH)
    shortlists = Shortlists(feature)
    old, new = (catalog_of([expert(i, [1, i, 0, 0, 0, 0]) for i in range(4)], generation) for generation in (3, 4))
    for catalog, num_built in ((old, 1), (old, 1), (new, 2), (new, 2), (old, 3), (new, 3)):
        assert shortlists.propose(catalog, (1,), 2).num_chain == 4
        assert feature.num_built == num_built, "the newest index is kept, whoever still asks for an old one"
