"""`POST /generate` and `POST /route`, answered at once."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from expert_store import ExpertStore
from tests.api.conftest import App, Start
from tests.support import asgi

pytestmark = pytest.mark.anyio


async def test_nobody_takes_it_so_the_base_answers_and_says_so(world: App) -> None:
    reply = await world.ask("POST", "/generate", {"prompt": "hi"})
    assert reply.status == 200
    answer = reply.json()
    assert list(answer) == ["id", "text", "finish_reason", "usage", "routing", "timings"]
    assert answer["text"] == " base: hello wörld 😀"
    assert answer["finish_reason"] == "stop"
    assert answer["routing"] == {
        "router": "chain",
        "expert": None,
        "version": None,
        "digest": None,
        "score": None,
        "fallback": True,
        "reason": "no_acceptance",
        "considered": [],
        "catalog_generation": 0,
        "shortlist": None,
        "experts": [],
        "shadow": [],
    }
    assert set(answer["usage"]) == {"prompt_tokens", "completion_tokens", "computed_tokens"}
    assert set(answer["timings"]) == {"queue_ms", "routing_ms", "first_token_ms", "total_ms"}


async def test_the_expert_that_accepts_answers_without_the_leading_space(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    await world.register(alora, "dates")
    answer = (await world.ask("POST", "/generate", {"prompt": "please do sql"})).json()
    assert answer["text"] == "sql: hello wörld 😀"
    routing = answer["routing"]
    assert (routing["expert"], routing["version"], routing["reason"]) == ("sql", 1, "accepted")
    assert routing["digest"].startswith("sha256:")
    assert [(c["expert"], c["accepted"]) for c in routing["considered"]] == [("dates", False), ("sql", True)]
    assert 0.99 < routing["score"] < 1
    assert routing["catalog_generation"] == 2


async def test_a_named_expert_is_not_routed(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    await world.register(alora, "sql")
    await world.ask("PUT", "/experts/sql/aliases/old", {"version": 1})
    for ref, version in (("sql", 2), ("sql@1", 1), ("sql@old", 1)):
        routing = (await world.ask("POST", "/generate", {"prompt": "hi", "expert": ref})).json()["routing"]
        assert (routing["reason"], routing["version"], routing["considered"]) == ("pinned", version, [])
    assert world.engine.sessions[-1].scored == []


async def test_router_none_asks_the_base_alone(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    routing = (await world.ask("POST", "/generate", {"prompt": "sql", "router": "none"})).json()["routing"]
    assert (routing["router"], routing["reason"], routing["fallback"]) == ("none", "router_none", False)


async def test_the_default_router_is_a_setting(start: Start, alora: Path) -> None:
    async with start(router="none") as world:
        await world.register(alora, "sql")
        routing = (await world.ask("POST", "/route", {"prompt": "sql"})).json()["routing"]
        assert routing["reason"] == "router_none"
        routing = (await world.ask("POST", "/route", {"prompt": "sql", "router": "chain"})).json()["routing"]
        assert routing["expert"] == "sql"


async def test_refuse_gives_no_text_rather_than_the_bases(world: App) -> None:
    answer = (await world.ask("POST", "/generate", {"prompt": "hi", "fallback": "refuse"})).json()
    assert (answer["text"], answer["finish_reason"]) == ("", "refused")
    assert (answer["routing"]["expert"], answer["routing"]["fallback"]) == (None, True)
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["timings"]["first_token_ms"] is None
    assert await world.metric('lora_relay_fallbacks_total{action="refuse",reason="no_acceptance"}') == 1


async def test_messages_and_prompt_mean_the_same(world: App) -> None:
    one = await world.ask("POST", "/route", {"prompt": "hi"})
    two = await world.ask("POST", "/route", {"messages": [{"role": "user", "content": "hi"}]})
    assert one.json()["usage"] == two.json()["usage"]
    prompts = [session.prompt for session in world.engine.sessions]
    assert prompts[0] == prompts[1]


async def test_route_says_who_and_generates_nothing(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    reply = await world.ask("POST", "/route", {"prompt": "sql please"})
    assert reply.status == 200
    answer = reply.json()
    assert list(answer) == ["id", "usage", "routing", "timings"]
    assert answer["routing"]["expert"] == "sql"
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["timings"]["first_token_ms"] is None


async def test_stop_strings_end_the_text(world: App) -> None:
    for stop, text in (("hello", " base: "), (["zzz", " wö"], " base: hello")):
        answer = (await world.ask("POST", "/generate", {"prompt": "hi", "stop": stop})).json()
        assert (answer["text"], answer["finish_reason"]) == (text, "stop")
    assert world.engine.num_open == 0


async def test_the_token_limit_ends_the_text_without_half_a_character(world: App) -> None:
    whole = " base: hello wörld 😀"
    for limit in range(1, 20, 2):
        answer = (await world.ask("POST", "/generate", {"prompt": "hi", "max_new_tokens": limit})).json()
        assert whole.startswith(answer["text"])
        assert (answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", limit)


async def test_sampling_values_reach_the_engine_and_the_cap_holds(start: Start) -> None:
    async with start(max_new_tokens=20) as world:
        assert (await world.ask("POST", "/generate", {"prompt": "hi"})).status == 200
        reply = await world.ask("POST", "/generate", {"prompt": "hi", "max_new_tokens": 21})
        assert reply.status == 422
        assert reply.json()["error"]["param"] == "max_new_tokens"
        assert "21" in reply.json()["error"]["message"]
        assert "20" in reply.json()["error"]["message"]


async def test_when_every_place_is_taken_the_next_gets_429_at_once(start: Start) -> None:
    async with start(max_running=1, max_queue=1) as world:
        world.engine.resume.clear()
        held = [world.begin("POST", "/generate", {"prompt": "hi"}) for _ in range(2)]
        while len(world.engine.sessions) < 2:
            await tick()
        reply = await world.ask("POST", "/generate", {"prompt": "hi"})
        assert reply.status == 429
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.json()["error"]["code"] == "too_busy"
        assert (await world.ask("GET", "/readyz")).status == 200
        world.engine.resume.set()
        assert [(await exchange.finish()).status for exchange in held] == [200, 200]
        assert (await world.ask("POST", "/generate", {"prompt": "hi"})).status == 200
        assert await world.metric('lora_relay_requests_total{endpoint="generate",outcome="busy"}') == 1


async def test_a_client_that_leaves_ends_its_request(world: App) -> None:
    world.engine.resume.clear()
    exchange = world.begin("POST", "/generate", {"prompt": "hi"})
    while not world.engine.num_open:
        await tick()
    exchange.leave()
    await exchange.finish()
    assert world.engine.num_open == 0
    assert await world.metric('lora_relay_requests_total{endpoint="generate",outcome="disconnected"}') == 1
    assert await world.metric("lora_relay_requests_running") == 0


async def test_a_request_keeps_the_version_it_began_with(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    await world.register(alora, "sql")
    store = world.store
    first = store.catalog.resolve("sql@1")
    world.engine.resume.clear()
    exchange = world.begin("POST", "/generate", {"prompt": "hi", "expert": "sql@1"})
    while not world.engine.num_open:
        await tick()
    assert (await world.ask("DELETE", "/experts/sql/versions/1")).status == 200
    assert (await world.ask("POST", "/route", {"prompt": "hi", "expert": "sql@1"})).status == 404
    assert first.folder.is_dir()
    assert world.engine.forgotten == []
    world.engine.resume.set()
    assert (await exchange.finish()).json()["routing"]["version"] == 1
    await gone(store, first.folder.is_dir)
    assert world.engine.forgotten == ["sql@1"]


async def test_a_routed_request_lets_go_of_experts_it_did_not_choose(world: App, alora: Path) -> None:
    for name in ("sql", "dates", "dates"):
        await world.register(alora, name)
    old = world.store.catalog.resolve("dates")
    world.engine.resume.clear()
    exchange = world.begin("POST", "/generate", {"prompt": "do sql"})
    while not world.engine.num_open:
        await tick()
    while "sql@1" not in world.engine.sessions[-1].scored:
        await tick()
    await world.ask("PUT", "/experts/dates/aliases/live", {"version": 1})
    await world.ask("DELETE", "/experts/dates/versions/2")
    await gone(world.store, old.folder.is_dir)
    world.engine.resume.set()
    assert (await exchange.finish()).status == 200


async def test_an_engine_that_fails_gives_503_and_is_not_alive(world: App) -> None:
    world.engine.stop()
    reply = await world.ask("POST", "/generate", {"prompt": "hi"})
    assert (reply.status, reply.json()["error"]["code"]) == (503, "engine_stopped")
    assert (await world.ask("GET", "/livez")).status == 503
    assert (await world.ask("GET", "/readyz")).status == 503


async def tick() -> None:
    await asyncio.sleep(0.002)


async def gone(store: ExpertStore, exists: Callable[[], bool]) -> None:
    """Files of deleted versions are removed in the background."""
    async with asyncio.timeout(10):
        while exists():
            await asyncio.sleep(0.005)
    assert store.verify() == []


def test_the_driver_reads_events() -> None:
    reply = asgi.Reply(body=b'event: token\ndata: {"text": "a"}\n\n')
    assert reply.events() == [("token", {"text": "a"})]


async def test_without_a_limit_there_are_as_many_new_tokens_as_fit(world: App) -> None:
    assert (await world.ask("POST", "/generate", {"prompt": "hi"})).status == 200
    assert world.engine.samplings[-1].max_new_tokens == 128
    context = world.engine.max_context
    long = {"prompt": "a " * (context // 2 - 40)}
    assert (await world.ask("POST", "/generate", long)).status == 200
    room = context - len(world.engine.sessions[-1].prompt.tokens)
    assert world.engine.samplings[-1].max_new_tokens == room < 128
    asked = await world.ask("POST", "/generate", {**long, "max_new_tokens": 128})
    assert (asked.status, asked.json()["error"]["code"]) == (422, "context_length_exceeded")
    full = await world.ask("POST", "/generate", {"prompt": "a " * context})
    assert (full.status, full.json()["error"]["code"]) == (422, "context_length_exceeded")
