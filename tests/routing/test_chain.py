"""The chain answers as if it asked one expert after another, whatever the windows."""

import asyncio
import math
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_store import Catalog, CorruptStore, Expert, ExpertVersion, Indicators
from server.engine import Branches, IndicatorLogits
from server.engine.prompt_states import States
from server.errors import EngineStopped, InvocationMissing, PromptTooLong, RequestTooLarge
from server.routing import ChainRouter, score
from tests.support.catalogs import make_version


class FakeProber:
    """Answers from a table; keeps count of what is asked and held."""

    def __init__(
        self,
        logits: dict[str, float],
        *,
        lost: Collection[str] = (),
        reason: Exception | None = None,
        room: int = 99,
    ) -> None:
        self._logits = logits
        self._lost = lost
        self._reason = reason or CorruptStore(Path("experts"), "cannot be read any more")
        self._room = room
        self.asked: list[list[str]] = []
        self.held: set[str] = set()
        self.expected: list[str] = []
        self.most_held = Branches()
        self.asleep: set[str] = set()

    async def score(self, experts: Sequence[ExpertVersion]) -> list[IndicatorLogits]:
        assert all((e.kind == "alora") == (experts[0].kind == "alora") for e in experts), "a batch is of one kind"
        if len(experts) > self._room:
            raise RequestTooLarge.slots(needed=len(experts), total=self._room)
        if any(expert.name in self._lost for expert in experts):
            raise self._reason
        self.asked.append([expert.name for expert in experts])
        self.held |= {expert.digest for expert in experts}
        return [IndicatorLogits(accept=self._logits[expert.name], reject=0.0) for expert in experts]

    def drop(self, experts: Sequence[ExpertVersion]) -> None:
        self.held -= {expert.digest for expert in experts}

    def wakes(self, expert: ExpertVersion) -> bool:
        return expert.name not in self.asleep

    async def prompt_states(self) -> States:
        raise AssertionError("neither the chain nor gradients look at states")

    def prefetch(self, experts: Sequence[ExpertVersion]) -> None:
        self.expected += [expert.name for expert in experts]


def catalog_of(kinds: Sequence[str], thresholds: Sequence[float] | None = None) -> Catalog:
    versions = [
        make_version(
            f"e{i}",
            kind="alora" if kind == "alora" else "lora",
            gated=kind == "gated",
            threshold=(thresholds or [0.5] * len(kinds))[i],
        )
        for i, kind in enumerate(kinds)
    ]
    experts = {v.name: Expert(v.name, {1: v}, {"live": 1}) for v in versions}
    return Catalog(generation=7, experts=experts, chain=tuple(experts))


@pytest.mark.parametrize("broken", [(math.nan, 0.0), (math.inf, 0.0), (math.inf, math.inf), (0.0, -math.inf)])
def test_an_expert_that_overflows_accepts_nothing(broken: tuple[float, float]) -> None:
    assert math.isnan(score(IndicatorLogits(*broken)))


def test_the_next_window_is_read_while_one_is_asked() -> None:
    prober = FakeProber({f"e{i}": 4.0 if i == 3 else -4.0 for i in range(7)})
    asyncio.run(ChainRouter(window=2).route(catalog_of(["alora"] * 7), prober))
    assert prober.asked == [["e0", "e1"], ["e2", "e3"]]
    assert prober.expected == ["e2", "e3", "e4", "e5"]


kinds_and_logits = st.lists(st.tuples(st.sampled_from(["lora", "alora", "gated"]), st.floats(-4, 4)), max_size=20)


@settings(max_examples=200, deadline=None)
@given(kinds_and_logits, st.integers(1, 9), st.integers(1, 4))
def test_windows_never_change_who_answers(pool: list[tuple[str, float]], window: int, plain_window: int) -> None:
    catalog = catalog_of([kind for kind, _ in pool])
    logits = {f"e{i}": logit for i, (_, logit) in enumerate(pool)}
    prober = FakeProber(logits)
    decision = asyncio.run(ChainRouter(window=window, plain_window=plain_window).route(catalog, prober))

    first = next((name for name in catalog.chain if score(IndicatorLogits(logits[name], 0.0)) >= 0.5), None)
    assert (decision.expert.name if decision.expert else None) == first
    assert decision.fallback == (first is None)
    assert decision.catalog_generation == 7
    asked = [name for batch in prober.asked for name in batch]
    assert len(asked) == len(set(asked))
    assert [c.expert for c in decision.considered] == sorted(asked, key=catalog.chain.index)
    before = list(catalog.chain[: catalog.chain.index(first)]) if first else list(catalog.chain)
    assert set(before) <= set(asked), "everybody in front of the winner has been asked"
    holds = decision.expert is not None and decision.expert.gate is None
    assert prober.held == ({decision.expert.digest} if holds else set()), "a gate is done once it has spoken"
    assert decision.expert is None or decision.expert is catalog.experts[decision.expert.name].live


@settings(max_examples=200, deadline=None)
@given(kinds_and_logits, st.sets(st.integers(0, 19)), st.integers(1, 9), st.integers(1, 9))
def test_those_that_cannot_be_asked_accept_nothing_and_change_nothing_for_the_others(
    pool: list[tuple[str, float]], lost: set[int], window: int, room: int
) -> None:
    catalog = catalog_of([kind for kind, _ in pool])
    logits = {f"e{i}": logit for i, (_, logit) in enumerate(pool)}
    names = {f"e{i}" for i in lost}
    prober = FakeProber(logits, lost=names, room=room)
    decision = asyncio.run(ChainRouter(window=window).route(catalog, prober))

    first = next((n for n in catalog.chain if n not in names and score(IndicatorLogits(logits[n], 0.0)) >= 0.5), None)
    assert (decision.expert.name if decision.expert else None) == first
    assert decision.fallback == (first is None)
    assert [(c.expert in names) == (c.problem is not None) for c in decision.considered].count(False) == 0
    before = catalog.chain[: catalog.chain.index(first)] if first else catalog.chain
    assert set(before) <= {c.expert for c in decision.considered}
    holds = decision.expert is not None and decision.expert.gate is None
    assert prober.held == ({decision.expert.digest} if decision.expert and holds else set())


def test_who_has_no_room_for_its_accept_string_leaves_the_prompt_to_others() -> None:
    reason = PromptTooLong(prompt_tokens=510, max_new_tokens=0, limit=512, accept_tokens=3)
    prober = FakeProber({"e0": 4.0, "e1": -4.0}, lost={"e0"}, reason=reason)
    decision = asyncio.run(ChainRouter().route(catalog_of(["alora", "alora"]), prober))
    assert (decision.expert, decision.fallback) == (None, True)
    assert [c.problem for c in decision.considered] == [reason.message, None]


@pytest.mark.parametrize("error", [EngineStopped("it has stopped"), InvocationMissing("e0@1")])
def test_what_is_no_fault_of_one_expert_ends_the_request(error: Exception) -> None:
    class Failing(FakeProber):
        async def score(self, experts: Sequence[ExpertVersion]) -> list[IndicatorLogits]:  # noqa: ARG002
            raise error

    with pytest.raises(type(error)):
        asyncio.run(ChainRouter().route(catalog_of(["alora", "alora"]), Failing({})))


def test_plain_experts_behind_an_accepting_activated_one_are_never_asked() -> None:
    prober = FakeProber({"e0": -1, "e1": -1, "e2": 1, "e3": 5})
    catalog = catalog_of(["lora", "alora", "alora", "lora"])
    decision = asyncio.run(ChainRouter(window=8, plain_window=2).route(catalog, prober))
    assert prober.asked == [["e1", "e2"], ["e0"]]
    assert decision.expert is not None
    assert decision.expert.name == "e2"


def test_gated_experts_are_asked_together_with_activated_ones() -> None:
    prober = FakeProber({"e0": -1, "e1": 1, "e2": 2, "e3": 3})
    catalog = catalog_of(["alora", "gated", "gated", "lora"])
    decision = asyncio.run(ChainRouter(window=8, plain_window=2).route(catalog, prober))
    assert prober.asked == [["e0", "e1", "e2"]]
    assert decision.expert is not None
    assert (decision.expert.name, decision.expert.kind) == ("e1", "lora")
    assert prober.held == set()


def test_a_gated_expert_is_held_to_its_threshold() -> None:
    prober = FakeProber({"e0": 1.0, "e1": 1.0})
    decision = asyncio.run(ChainRouter().route(catalog_of(["gated", "gated"], [0.9, 0.6]), prober))
    assert [c.accepted for c in decision.considered] == [False, True]


def test_later_windows_are_not_asked_once_somebody_accepts() -> None:
    prober = FakeProber({f"e{i}": 1.0 if i == 1 else -1.0 for i in range(6)})
    asyncio.run(ChainRouter(window=2).route(catalog_of(["alora"] * 6), prober))
    assert prober.asked == [["e0", "e1"]]


def test_each_expert_is_held_to_its_own_threshold() -> None:
    prober = FakeProber({"e0": 1.0, "e1": 1.0})
    decision = asyncio.run(ChainRouter().route(catalog_of(["alora", "alora"], [0.9, 0.6]), prober))
    assert [c.accepted for c in decision.considered] == [False, True]
    assert decision.score == pytest.approx(1 / (1 + math.exp(-1)))


def test_an_empty_chain_falls_back_to_the_base() -> None:
    decision = asyncio.run(ChainRouter().route(Catalog(generation=1), FakeProber({})))
    assert (decision.expert, decision.fallback, decision.reason) == (None, True, "no_acceptance")


def test_branches_count_what_one_window_can_hold() -> None:
    router = ChainRouter(window=4, plain_window=2)
    assert router.branches(catalog_of(["alora"] * 9 + ["lora"] * 5)) == Branches(activated=4, plain=2)
    assert router.branches(catalog_of(["alora", "lora"])) == Branches(activated=1, plain=1)
    assert router.branches(catalog_of(["gated", "alora", "lora"])) == Branches(activated=2, plain=1)


@pytest.mark.parametrize("difference", [-1000.0, -3.0, 0.0, 3.0, 1000.0])
def test_score_is_a_stable_sigmoid(difference: float) -> None:
    value = score(IndicatorLogits(accept=difference + 5, reject=5.0))
    assert 0 <= value <= 1
    assert value == pytest.approx(1 / (1 + math.exp(-min(max(difference, -700), 700))))


def test_indicators_default_to_the_papers() -> None:
    assert (Indicators().accept, Indicators().reject) == ("<<pos>>", "<<neg>>")
