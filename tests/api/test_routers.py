"""Several routers behind one server: which are ready, what a request for one that is not gets, and shadows."""

from pathlib import Path
from typing import Any

import pytest

from expert_store import Catalog, ExpertVersion
from server.engine.answerer import OutputMixture
from server.engine.types import Branches
from server.model.chat import Prompt
from server.routing import Decision, Router, RouterStatus, RoutingSession, ScoringRouter, Shortlist
from tests.api.conftest import App, Start, publish_router

pytestmark = pytest.mark.anyio


class EvenRouter:
    """Mixes all experts of the chain evenly; also the plan of itself. Raises `failure` where there is one."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.catalog = Catalog()

    def status(self, catalog: Catalog) -> RouterStatus:  # noqa: ARG002
        return RouterStatus("learned", version=3)

    def plan(self, catalog: Catalog) -> "EvenRouter":
        self.catalog = catalog
        return self

    @property
    def readable(self) -> tuple[ExpertVersion, ...]:
        return self.catalog.chain_experts

    def branches(self, shortlist: Shortlist | None) -> Branches:  # noqa: ARG002
        return Branches(plain=5)

    async def route(self, prompt: Prompt, session: RoutingSession, shortlist: Shortlist | None) -> Decision:  # noqa: ARG002
        if self.failure is not None:
            raise self.failure
        share = 1 / len(self.readable)
        mixture = OutputMixture(self.readable, ((share,) * len(self.readable),) * 2)
        return Decision("learned", mixture, None, False, "weighted", (), self.catalog.generation)


def install(world: App, name: ScoringRouter, router: Router) -> None:
    world.app.state.serving.service._routers[name] = router


async def test_every_router_is_listed_with_what_it_lacks(world: App) -> None:
    listed = (await world.ask("GET", "/routers")).json()
    assert (listed["default"], listed["catalog_generation"]) == ("chain", 0)
    assert [(r["router"], r["ready"]) for r in listed["routers"]] == [
        ("chain", True),
        ("gradient", False),
        ("learned", False),
    ]
    assert all(bool(r["missing"]) != r["ready"] for r in listed["routers"])


@pytest.mark.parametrize("name", ["gradient", "learned"])
@pytest.mark.parametrize("path", ["/generate", "/route"])
async def test_a_router_that_is_not_ready_is_a_409_that_says_what_is_missing(world: App, name: str, path: str) -> None:
    reply = await world.ask("POST", path, {"prompt": "hi", "router": name})
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (409, "router_not_ready", "router")
    [listed] = [r for r in (await world.ask("GET", "/routers")).json()["routers"] if r["router"] == name]
    assert listed["missing"][0] in error["message"]
    assert world.engine.num_open == 0


async def test_a_default_router_that_is_not_ready_is_the_same_409(start: Start) -> None:
    async with start(router="learned") as world:
        assert (await world.ask("POST", "/generate", {"prompt": "hi"})).status == 409
        assert (await world.ask("POST", "/generate", {"prompt": "hi", "router": "none"})).status == 200


async def test_a_mixture_answers_and_says_who_is_in_it(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    await world.register(alora, "dates")
    install(world, "learned", EvenRouter())
    answer = (await world.ask("POST", "/generate", {"prompt": "hi", "router": "learned"})).json()
    assert answer["text"] == "dates+sql: hello wörld 😀"
    routing = answer["routing"]
    assert (routing["reason"], routing["expert"], routing["fallback"]) == ("weighted", None, False)
    assert [(share["expert"], share["version"], share["weight"]) for share in routing["experts"]] == [
        ("dates", 1, 0.5),
        ("sql", 1, 0.5),
    ]
    counted = 'lora_relay_routing_decisions_total{expert="(mixture)",reason="weighted",router="learned"}'
    assert await world.metric(counted) == 1


async def test_a_shadow_is_scored_and_changes_nothing(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    await world.register(alora, "dates")
    install(world, "learned", EvenRouter())
    plain = (await world.ask("POST", "/generate", {"prompt": "please do sql"})).json()
    shadowed = (await world.ask("POST", "/generate", {"prompt": "please do sql", "shadow": ["learned"]})).json()
    assert shadowed["text"] == plain["text"]
    [shadow] = shadowed["routing"].pop("shadow")
    assert plain["routing"].pop("shadow") == []
    assert shadowed["routing"] == plain["routing"]
    assert (shadow["router"], shadow["problem"], shadow["agreed"]) == ("learned", None, False)
    assert [share["weight"] for share in shadow["experts"]] == [0.5, 0.5]
    agreements = 'lora_relay_router_agreements_total{agreed="no",router="chain",shadow="learned"}'
    assert await world.metric(agreements) == 1
    assert await world.metric('lora_relay_router_seconds_count{router="learned"}') == 1
    assert await world.metric('lora_relay_router_seconds_count{router="chain"}') == 2


async def test_a_shadow_agrees_if_its_leading_expert_answers(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    install(world, "learned", EvenRouter())
    body = {"prompt": "please do sql", "router": "learned", "shadow": ["chain"]}
    [shadow] = (await world.ask("POST", "/route", body)).json()["routing"]["shadow"]
    assert (shadow["expert"], shadow["version"], shadow["agreed"]) == ("sql", 1, True)
    assert shadow["score"] > 0.99
    pinned = {"prompt": "hi", "expert": "sql", "shadow": ["chain"]}
    [shadow] = (await world.ask("POST", "/route", pinned)).json()["routing"]["shadow"]
    assert (shadow["expert"], shadow["fallback"], shadow["agreed"]) == (None, True, False)
    assert await world.metric('lora_relay_router_agreements_total{agreed="no",router="(pinned)",shadow="chain"}') == 1


async def test_a_shadow_that_is_not_ready_or_fails_never_fails_the_request(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    install(world, "learned", EvenRouter(failure=RuntimeError("boom")))
    body = {"prompt": "please do sql", "shadow": ["gradient", "learned"]}
    reply = await world.ask("POST", "/generate", body)
    assert (reply.status, reply.json()["routing"]["expert"]) == (200, "sql")
    gradient, learned = reply.json()["routing"]["shadow"]
    assert "not ready" in gradient["problem"]
    assert "log" in learned["problem"]
    assert "boom" not in learned["problem"]
    for name in ("gradient", "learned"):
        sample = f'lora_relay_router_agreements_total{{agreed="unscored",router="chain",shadow="{name}"}}'
        assert await world.metric(sample) == 1


async def test_a_shadow_the_engine_has_no_room_for_is_left_out(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    install(world, "learned", EvenRouter())
    world.engine.most_branches = 3
    reply = await world.ask("POST", "/generate", {"prompt": "please do sql", "shadow": ["learned"]})
    assert (reply.status, reply.json()["routing"]["expert"]) == (200, "sql")
    [shadow] = reply.json()["routing"]["shadow"]
    assert "KV blocks" in shadow["problem"]


@pytest.mark.parametrize(
    "body",
    [
        {"shadow": ["chain"]},
        {"shadow": ["learned", "learned"]},
        {"shadow": ["none"]},
        {"shadow": "chain"},
        {"router": "learned", "shadow": ["learned"]},
    ],
)
async def test_shadows_that_make_no_sense_are_refused(world: App, body: dict[str, object]) -> None:
    reply = await world.ask("POST", "/route", {"prompt": "hi", **body})
    assert reply.status == 422
    assert reply.json()["error"]["param"].startswith("shadow")


async def learned_of(world: App) -> dict[str, Any]:
    listed = (await world.ask("GET", "/routers")).json()["routers"]
    [learned] = [router for router in listed if router["router"] == "learned"]
    assert isinstance(learned, dict)
    return learned


async def test_a_router_that_was_published_answers_the_next_request(world: App, lora: Path) -> None:
    for name in ("sql", "dates"):
        assert (await world.register(lora, name, manifest=None)).status == 201
    body = {"prompt": "hi", "router": "learned"}
    assert (await world.ask("POST", "/generate", body)).status == 409
    publish_router(world, world.engine.base, {"sql": 3.0, "dates": 3.0})
    assert (await learned_of(world))["version"] == 1
    answer = (await world.ask("POST", "/generate", body)).json()
    assert answer["text"] == " sql+dates: hello wörld 😀"
    assert [share["weight"] for share in answer["routing"]["experts"]] == [0.5, 0.5]

    publish_router(world, world.engine.base, {"sql": 3.0, "dates": 0.0})
    assert (await learned_of(world))["version"] == 2
    answer = (await world.ask("POST", "/generate", body)).json()
    assert [(share["expert"], share["weight"]) for share in answer["routing"]["experts"]] == [("sql", 1.0)]
    assert answer["routing"]["reason"] == "weighted"
    assert world.engine.num_open == 0


async def test_a_router_over_an_expert_that_was_replaced_or_deleted_is_a_409(world: App, lora: Path) -> None:
    for name in ("sql", "dates"):
        await world.register(lora, name, manifest=None)
    publish_router(world, world.engine.base, {"sql": 3.0, "dates": 3.0})
    body = {"prompt": "hi", "router": "learned"}
    await world.register(lora, "sql", manifest=None)
    reply = await world.ask("POST", "/generate", body)
    assert (reply.status, reply.json()["error"]["code"]) == (409, "router_not_ready")
    assert "sql@2 is live now" in reply.json()["error"]["message"]
    assert "relay train router" in reply.json()["error"]["message"]
    assert (await learned_of(world))["ready"] is False
    await world.ask("DELETE", "/experts/sql/versions/1")
    assert "sql@1, which is gone" in (await world.ask("POST", "/route", body)).json()["error"]["message"]


async def test_a_new_expert_leaves_the_learned_router_as_it_was(world: App, lora: Path) -> None:
    for name in ("sql", "dates"):
        await world.register(lora, name, manifest=None)
    publish_router(world, world.engine.base, {"sql": 3.0, "dates": 1.0})
    body = {"prompt": "hi", "router": "learned"}
    before = (await world.ask("POST", "/generate", body)).json()
    await world.register(lora, "logs", manifest=None)
    after = (await world.ask("POST", "/generate", body)).json()
    assert (after["text"], after["routing"]["experts"]) == (before["text"], before["routing"]["experts"])
