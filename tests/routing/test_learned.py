"""The learned router: what its gates give, when it is ready, and that a published router is in use at once."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_store import ROUTER_FILE, Catalog, Expert, ExpertStore, ExpertVersion, Gates, RoutedExpert, RouterDraft
from server.engine import OutputMixture
from server.engine.types import IndicatorLogits
from server.errors import NonFiniteLogits, RouterNotReady
from server.model.chat import Prompt
from server.model.gates import Array, GateNetwork, read_network
from server.routing import LearnedRouter, SlotRoom
from tests.support.catalogs import make_version

BASE = "sha256:" + "0" * 64
LAYERS, WIDTH = 2, 3
ROOM = SlotRoom(num_slots=64, slot_rank=8)
PROMPT = Prompt(tokens=(1, 2, 3), body_length=2)


class FakeSession:
    """Gives fixed states."""

    def __init__(self, states_LD: Array) -> None:
        self.states_LD = states_LD

    async def prompt_states(self) -> Array:
        return self.states_LD

    async def score(self, experts: Sequence[ExpertVersion]) -> list[IndicatorLogits]:  # noqa: ARG002
        raise AssertionError("the learned router asks nobody")

    def wakes(self, expert: ExpertVersion) -> bool:  # noqa: ARG002
        raise AssertionError("the learned router mixes plain experts")

    def drop(self, experts: Sequence[ExpertVersion]) -> None: ...

    def prefetch(self, experts: Sequence[ExpertVersion]) -> None: ...


def catalog_of(*versions: ExpertVersion, live: int | None = None) -> Catalog:
    experts: dict[str, Expert] = {}
    for version in versions:
        known = dict(experts[version.name].versions) if version.name in experts else {}
        numbers = {**known, version.version: version}
        experts[version.name] = Expert(version.name, numbers, {"live": live or max(numbers)})
    return Catalog(generation=5, experts=experts)


SQL, DATES = make_version("sql", kind="lora"), make_version("dates", kind="lora")


def network(*rows: float, gates: Gates = "sigmoid") -> GateNetwork:
    """An expert for each number, which is its bias in every layer."""
    weight_LED = np.zeros((LAYERS, len(rows), WIDTH), np.float32)
    return GateNetwork(weight_LED, np.tile(np.array(rows, np.float32), (LAYERS, 1)), gates)


def publish(
    store: ExpertStore, gates: GateNetwork, *experts: ExpertVersion, base: str = BASE, num_layers: int = LAYERS
) -> None:
    draft = RouterDraft(
        base_fingerprint=base,
        gates=gates.gates,
        experts=tuple(RoutedExpert(name=e.name, version=e.version, digest=e.digest) for e in experts),
        num_layers=num_layers,
        width=WIDTH,
    )
    with store.stage() as staged:
        (staged.folder / ROUTER_FILE).write_bytes(gates.to_bytes())
        store.publish_router(staged, draft)


@pytest.fixture
def store(tmp_path: Path) -> ExpertStore:
    return ExpertStore.open(tmp_path / "store")


def decide(store: ExpertStore, catalog: Catalog, states: Array | None = None) -> OutputMixture | None:
    plan = LearnedRouter(store, base_fingerprint=BASE, room=ROOM).plan(catalog)
    given = np.ones((LAYERS, WIDTH), np.float32) if states is None else states
    decision = asyncio.run(plan.route(PROMPT, FakeSession(given), None))
    assert decision.catalog_generation == catalog.generation
    assert decision.answerer is None or isinstance(decision.answerer, OutputMixture)
    assert decision.fallback == (decision.answerer is None)
    return decision.answerer


def test_gates_give_the_formula() -> None:
    rng = np.random.default_rng(0)
    weight, bias, states = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4)), rng.normal(size=(2, 3))
    weight, bias, states = (array.astype(np.float32) for array in (weight, bias, states))
    logits = np.stack([weight[layer] @ states[layer] + bias[layer] for layer in range(2)])
    sigmoid = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(
        GateNetwork(weight, bias, "sigmoid").weights(states), sigmoid / sigmoid.sum(1, keepdims=True), rtol=1e-5
    )
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(GateNetwork(weight, bias, "softmax").weights(states), softmax, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=6), st.sampled_from(["sigmoid", "softmax"]))
def test_weights_of_open_gates_sum_to_one_however_small_the_gates(rows: list[float], gates: Gates) -> None:
    weights = network(*rows, gates=gates).weights(np.ones((LAYERS, WIDTH), np.float32))
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights.sum(axis=1), float(any(rows)), atol=1e-5)
    assert all((weights[:, index] == 0).all() for index, row in enumerate(rows) if row == 0), "zero rows are closed"


def test_a_mixture_holds_those_whose_gates_are_open(store: ExpertStore) -> None:
    catalog = catalog_of(SQL, DATES)
    publish(store, network(2.0, 2.0), SQL, DATES)
    mixture = decide(store, catalog)
    assert mixture == OutputMixture((SQL, DATES), ((0.5, 0.5),) * LAYERS)
    publish(store, network(2.0, 0.0), SQL, DATES)
    assert decide(store, catalog) == OutputMixture((SQL,), ((1.0,),) * LAYERS)
    publish(store, network(0.0, 0.0), SQL, DATES)
    assert decide(store, catalog) is None, "nobody takes part, so the base answers"


def test_an_expert_that_came_later_takes_no_part(store: ExpertStore) -> None:
    publish(store, network(2.0, 1.0), SQL, DATES)
    before = decide(store, catalog_of(SQL, DATES))
    assert decide(store, catalog_of(SQL, DATES, make_version("logs", kind="lora"))) == before


def test_states_that_are_not_finite_are_the_requests_fault(store: ExpertStore) -> None:
    publish(store, network(2.0, 1.0), SQL, DATES)
    with pytest.raises(NonFiniteLogits):
        decide(store, catalog_of(SQL, DATES), np.full((LAYERS, WIDTH), np.inf, np.float32))


def test_a_router_is_in_use_as_soon_as_it_is_published(store: ExpertStore) -> None:
    router, catalog = LearnedRouter(store, base_fingerprint=BASE, room=ROOM), catalog_of(SQL, DATES)
    assert router.status(catalog).missing == ("no router has been trained for this pool",)
    elsewhere = ExpertStore.open(store.root)  # another process, say
    publish(elsewhere, network(2.0, 1.0), SQL, DATES)
    assert (router.status(catalog).ready, router.status(catalog).version) == (True, 1)
    plan = router.plan(catalog)
    publish(elsewhere, network(0.0, 1.0), SQL, DATES)
    assert router.status(catalog).version == 2
    session = FakeSession(np.ones((LAYERS, WIDTH), np.float32))
    decision = asyncio.run(plan.route(PROMPT, session, None))
    assert len(decision.shares) == 2, "a request stays with the router it began with"


def test_what_does_not_fit_is_named_with_what_to_run(store: ExpertStore) -> None:
    router = LearnedRouter(store, base_fingerprint=BASE, room=ROOM)
    publish(store, network(2.0, 1.0), SQL, DATES)
    newer = make_version("sql", version=2, kind="lora")
    for catalog, said in (
        (catalog_of(DATES), "sql@1, which is gone"),
        (catalog_of(newer, DATES), "sql@1, which is gone"),
        (catalog_of(SQL, newer, DATES), "sql@2 is live now"),
    ):
        with pytest.raises(RouterNotReady) as refused:
            router.plan(catalog)
        assert said in refused.value.message
        assert "relay train router" in refused.value.message
    assert router.status(catalog_of(SQL, newer, DATES, live=1)).ready, "rolled back"


def test_a_router_whose_experts_never_fit_together_is_not_ready(store: ExpertStore) -> None:
    """As after a restart with fewer slots, or published beside the server."""
    publish(store, network(2.0, 1.0), SQL, DATES)
    catalog = catalog_of(SQL, DATES)
    slots = sum(-(-expert.rank // 8) for expert in (SQL, DATES))
    assert LearnedRouter(store, base_fingerprint=BASE, room=SlotRoom(slots, 8)).status(catalog).ready
    cramped = LearnedRouter(store, base_fingerprint=BASE, room=SlotRoom(slots - 1, 8))
    with pytest.raises(RouterNotReady, match=f"need {slots} slots together, the server has {slots - 1}"):
        cramped.plan(catalog)


def test_a_router_of_another_base_is_not_ready(store: ExpertStore) -> None:
    publish(store, network(2.0, 1.0), SQL, DATES, base="sha256:" + "1" * 64)
    with pytest.raises(RouterNotReady, match="was trained on base sha256:1111"):
        LearnedRouter(store, base_fingerprint=BASE, room=ROOM).plan(catalog_of(SQL, DATES))


@pytest.mark.parametrize("damage", ["manifest.json", ROUTER_FILE, "current.json"])
def test_a_damaged_router_is_not_ready(store: ExpertStore, damage: str) -> None:
    publish(store, network(2.0, 1.0), SQL, DATES)
    folder = store.root / "routers" / "learned"
    path = folder / damage if damage == "current.json" else folder / "1" / damage
    path.write_bytes(path.read_bytes()[:-5] + b"xxxxx")
    status = LearnedRouter(store, base_fingerprint=BASE, room=ROOM).status(catalog_of(SQL, DATES))
    assert "cannot be read" in status.missing[0]
    assert [problem.path for problem in store.verify()] == [path]


def test_a_router_whose_numbers_do_not_fit_its_manifest_is_not_ready(store: ExpertStore, tmp_path: Path) -> None:
    publish(store, network(2.0, 1.0), SQL, DATES, num_layers=LAYERS + 1)
    assert not LearnedRouter(store, base_fingerprint=BASE, room=ROOM).status(catalog_of(SQL, DATES)).ready
    path = tmp_path / ROUTER_FILE
    for content in (b"nonsense", network(float("nan"), 1.0).to_bytes()):
        path.write_bytes(content)
        with pytest.raises(Exception, match="train"):
            read_network(path, gates="sigmoid", shape=(LAYERS, 2, WIDTH))
