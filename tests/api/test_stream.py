"""`POST /generate` with `stream`: the order of events, late errors, clients that leave."""

import asyncio
from pathlib import Path

import pytest

from server.errors import EngineStopped
from tests.api.conftest import App, Start

pytestmark = pytest.mark.anyio
BODY = {"prompt": "please do sql", "stream": True}


async def test_routing_then_tokens_then_done(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    reply = await world.ask("POST", "/generate", BODY)
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = reply.events()
    names = [name for name, _ in events]
    assert (names[0], set(names[1:-1]), names[-1]) == ("routing", {"token"}, "done")
    assert "".join(data["text"] for name, data in events if name == "token") == "sql: hello wörld 😀"
    done = events[-1][1]
    assert list(done) == ["id", "finish_reason", "usage", "routing", "timings"]
    assert done["routing"] == events[0][1]


async def test_the_stream_says_what_the_whole_answer_says(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    whole = (await world.ask("POST", "/generate", {**BODY, "stream": False})).json()
    events = (await world.ask("POST", "/generate", BODY)).events()
    assert "".join(data["text"] for name, data in events if name == "token") == whole["text"]
    assert events[-1][1]["usage"] == whole["usage"]
    assert events[-1][1]["finish_reason"] == whole["finish_reason"]


async def test_the_decision_comes_before_any_token(world: App) -> None:
    world.engine.resume.clear()
    exchange = world.begin("POST", "/generate", BODY)
    await exchange.until(b"event: routing")
    assert b"event: token" not in exchange.reply.body
    world.engine.resume.set()
    assert (await exchange.finish()).complete


async def test_refused_streams_have_no_tokens(world: App) -> None:
    events = (await world.ask("POST", "/generate", {**BODY, "fallback": "refuse"})).events()
    assert [name for name, _ in events] == ["routing", "done"]
    assert events[-1][1]["finish_reason"] == "refused"


async def test_what_goes_wrong_before_the_decision_has_a_status(world: App) -> None:
    reply = await world.ask("POST", "/generate", {**BODY, "expert": "nobody"})
    assert (reply.status, reply.json()["error"]["code"]) == (404, "unknown_expert")
    assert reply.json()["error"]["param"] == "expert"


async def test_what_goes_wrong_after_the_first_byte_is_an_error_event(world: App) -> None:
    world.engine.failure, world.engine.fail_after = EngineStopped("the engine has stopped"), 3
    reply = await world.ask("POST", "/generate", BODY)
    name, data = reply.events()[-1]
    assert (reply.status, name, data["error"]["code"]) == (200, "error", "engine_stopped")
    assert reply.complete
    assert await world.metric('lora_relay_errors_total{code="engine_stopped"}') == 1
    assert await world.metric('lora_relay_requests_total{endpoint="generate",outcome="error"}') == 1


async def test_a_bug_in_mid_stream_is_an_error_event_that_says_nothing_of_its_insides(world: App) -> None:
    world.engine.failure, world.engine.fail_after = ZeroDivisionError("secret"), 3
    name, data = (await world.ask("POST", "/generate", BODY)).events()[-1]
    assert (name, data["error"]["type"]) == ("error", "server_error")
    assert "secret" not in data["error"]["message"]


async def test_a_client_that_leaves_mid_stream_ends_its_request(world: App) -> None:
    world.engine.pause_at = 5
    exchange = world.begin("POST", "/generate", BODY)
    await exchange.until(b"event: token")
    assert world.engine.num_open == 1
    exchange.leave()
    await exchange.finish()
    assert world.engine.num_open == 0
    assert await world.metric('lora_relay_requests_total{endpoint="generate",outcome="disconnected"}') == 1


async def test_a_client_that_leaves_the_queue_frees_its_place(start: Start) -> None:
    async with start(max_running=1, max_queue=0) as world:
        world.engine.resume.clear()
        exchange = world.begin("POST", "/generate", BODY)
        while not world.engine.num_open:
            await asyncio.sleep(0.002)
        assert (await world.ask("POST", "/generate", BODY)).status == 429
        exchange.leave()
        await exchange.finish()
        world.engine.resume.set()
        assert (await world.ask("POST", "/generate", BODY)).status == 200


async def test_registering_an_expert_does_not_touch_running_streams(world: App, alora: Path) -> None:
    await world.register(alora, "dates")
    world.engine.resume.clear()
    streams = [world.begin("POST", "/generate", BODY) for _ in range(16)]
    for stream in streams:
        await stream.until(b"event: routing")
    assert (await world.register(alora, "sql")).status == 201
    world.engine.resume.set()
    for stream in streams:
        reply = await stream.finish()
        assert reply.events()[-1][1]["routing"]["catalog_generation"] == 1
    assert (await world.ask("POST", "/route", BODY | {"stream": None})).status == 422
    routing = (await world.ask("POST", "/route", {"prompt": "please do sql"})).json()["routing"]
    assert (routing["expert"], routing["catalog_generation"]) == ("sql", 2)
