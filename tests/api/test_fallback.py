"""The pool's fallback expert over HTTP: who answers where nobody accepts, and how that is said."""

from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import App, Start, publish_router
from tests.support import tiny

pytestmark = pytest.mark.anyio


async def register_three(world: App, alora: Path, lora: Path) -> None:
    """Two experts of the chain, and a plain one outside of it."""
    for name in ("sql", "dates"):
        assert (await world.register(alora, name)).status == 201
    assert (await world.register(lora, "general", manifest="{}")).status == 201


async def set_fallback(world: App, name: str | None) -> Any:
    reply = await world.ask("PUT", "/fallback", {"expert": name})
    assert reply.status == 200, reply.body
    return reply.json()


async def test_it_is_set_shown_and_unset(world: App, alora: Path, lora: Path) -> None:
    assert (await world.ask("GET", "/fallback")).json() == {"expert": None, "version": None, "catalog_generation": 0}
    await register_three(world, alora, lora)
    assert await set_fallback(world, "general") == {"expert": "general", "version": 1, "catalog_generation": 4}
    assert (await world.ask("GET", "/fallback")).json()["expert"] == "general"
    assert (await set_fallback(world, None))["expert"] is None


async def test_it_answers_where_nobody_accepts_and_the_answer_says_so(world: App, alora: Path, lora: Path) -> None:
    await register_three(world, alora, lora)
    without = (await world.ask("POST", "/generate", {"prompt": "hi"})).json()
    assert (without["text"], without["routing"]["expert"]) == (" base: hello wörld 😀", None)
    await set_fallback(world, "general")
    answer = (await world.ask("POST", "/generate", {"prompt": "hi"})).json()
    assert answer["text"] == " general: hello wörld 😀"
    routing = answer["routing"]
    assert (routing["expert"], routing["version"], routing["score"]) == ("general", 1, None)
    assert (routing["fallback"], routing["reason"], routing["router"]) == (True, "no_acceptance", "chain")
    assert [(share["expert"], share["weight"]) for share in routing["experts"]] == [("general", 1.0)]
    assert [considered["accepted"] for considered in routing["considered"]] == [False, False]
    dry = (await world.ask("POST", "/route", {"prompt": "hi"})).json()["routing"]
    assert dry == routing
    assert world.engine.num_open == 0
    assert await world.metric('lora_relay_fallbacks_total{action="base",reason="no_acceptance"}') == 1
    assert await world.metric('lora_relay_fallbacks_total{action="expert",reason="no_acceptance"}') == 2
    decided = 'lora_relay_routing_decisions_total{expert="general",reason="no_acceptance",router="chain"}'
    assert await world.metric(decided) == 2


async def test_somebody_who_accepts_or_is_named_answers_as_before(world: App, alora: Path, lora: Path) -> None:
    await register_three(world, alora, lora)
    await set_fallback(world, "general")
    for body, who in (
        ({"prompt": "do sql"}, "sql"),
        ({"prompt": "hi", "expert": "dates"}, "dates"),
        ({"prompt": "hi", "router": "none"}, "base"),
        ({"prompt": "hi", "fallback": "base"}, "base"),
    ):
        answer = (await world.ask("POST", "/generate", body)).json()
        assert answer["text"] == f" {who}: hello wörld 😀".removeprefix(" " if who in ("sql", "dates") else "")
    refused = (await world.ask("POST", "/generate", {"prompt": "hi", "fallback": "refuse"})).json()
    assert (refused["text"], refused["finish_reason"], refused["routing"]["expert"]) == ("", "refused", None)


async def test_it_answers_for_an_empty_pool_and_may_be_in_the_chain_itself(world: App, alora: Path, lora: Path) -> None:
    await world.register(lora, "general", manifest="{}")
    await set_fallback(world, "general")
    routing = (await world.ask("POST", "/route", {"prompt": "hi"})).json()["routing"]
    assert (routing["expert"], routing["considered"]) == ("general", [])
    await world.register(alora, "sql")
    await set_fallback(world, "sql")
    routing = (await world.ask("POST", "/route", {"prompt": "hi"})).json()["routing"]
    assert (routing["expert"], routing["fallback"], routing["score"]) == ("sql", True, None)
    assert [(one["expert"], one["accepted"]) for one in routing["considered"]] == [("sql", False)]
    routing = (await world.ask("POST", "/route", {"prompt": "sql"})).json()["routing"]
    assert (routing["expert"], routing["fallback"], routing["reason"]) == ("sql", False, "accepted")


async def test_streams_and_completions_fall_back_alike(world: App, alora: Path, lora: Path) -> None:
    await register_three(world, alora, lora)
    await set_fallback(world, "general")
    events = (await world.ask("POST", "/generate", {"prompt": "hi", "stream": True})).events()
    assert (events[0][0], events[0][1]["expert"], events[0][1]["fallback"]) == ("routing", "general", True)
    raw = world.engine.chat.render([{"role": "user", "content": "hi"}]).tokens
    reply = await world.ask("POST", "/v1/completions", {"model": "relay/chain", "prompt": list(raw), "max_tokens": 60})
    assert reply.json()["choices"][0]["text"] == " general: hello wörld 😀"
    assert reply.json()["routing"]["expert"] == "general"


async def test_a_prompt_that_does_not_wake_the_fallback_up_is_left_to_the_base(
    world: App, alora: Path, lora: Path
) -> None:
    await world.register(lora, "plain")
    assert (await world.register(alora, "general", manifest="{}")).status == 201
    await set_fallback(world, "general")
    raw = {"model": "relay/chain", "prompt": "hello", "max_tokens": 60}
    reply = await world.ask("POST", "/v1/completions", raw)
    assert reply.status == 200, reply.body
    assert reply.json()["choices"][0]["text"] == " base: hello wörld 😀"
    routing = reply.json()["routing"]
    assert (routing["expert"], routing["fallback"], routing["reason"]) == (None, True, "no_acceptance")
    streamed = await world.ask("POST", "/v1/completions", {**raw, "stream": True})
    assert b"wake" not in streamed.body
    assert b"error" not in streamed.body
    templated = (await world.ask("POST", "/route", {"prompt": "hello"})).json()["routing"]
    assert templated["expert"] == "general", "the chat template wakes it up"
    assert await world.metric('lora_relay_fallbacks_total{action="base",reason="no_acceptance"}') == 2


async def test_dry_runs_and_shadows_know_who_does_not_wake_up(
    world: App, base_folder: Path, lora: Path, tmp_path: Path
) -> None:
    foreign = tiny.write_adapter(tmp_path, base_folder, kind="alora", invocation=(5, 5, 5), targets=["q_proj"])
    await world.register(lora, "plain")
    assert (await world.register(foreign, "general", manifest="{}")).status == 201
    await set_fallback(world, "general")
    publish_router(world, world.engine.base, {"plain": 0.0})
    dry = (await world.ask("POST", "/route", {"prompt": "hi", "shadow": ["learned"]})).json()["routing"]
    answered = (await world.ask("POST", "/generate", {"prompt": "hi", "shadow": ["learned"]})).json()
    assert answered["text"] == " base: hello wörld 😀"
    for routing in (dry, answered["routing"]):
        assert (routing["expert"], routing["fallback"]) == (None, True)
        [shadow] = routing["shadow"]
        assert (shadow["expert"], shadow["fallback"], shadow["agreed"]) == (None, True, True)


async def test_a_closed_learned_router_falls_back_too_and_shadows_agree_on_it(
    world: App, alora: Path, lora: Path
) -> None:
    await register_three(world, alora, lora)
    publish_router(world, world.engine.base, {"general": 0.0})
    body = {"prompt": "hi", "router": "learned", "shadow": ["chain"]}
    routing = (await world.ask("POST", "/route", body)).json()["routing"]
    closed = routing["fallback"]
    await set_fallback(world, "general")
    routing = (await world.ask("POST", "/route", body)).json()["routing"]
    assert (routing["fallback"], routing["experts"][0]["expert"]) == (closed, "general")
    [shadow] = routing["shadow"]
    assert (shadow["expert"], shadow["fallback"], shadow["agreed"]) == ("general", True, True)


async def test_without_a_live_version_the_base_answers_until_there_is_one(world: App, alora: Path, lora: Path) -> None:
    await register_three(world, alora, lora)
    await set_fallback(world, "general")
    await world.ask("DELETE", "/experts/general/aliases/live")
    shown = (await world.ask("GET", "/fallback")).json()
    assert (shown["expert"], shown["version"]) == ("general", None)
    routing = (await world.ask("POST", "/route", {"prompt": "hi"})).json()["routing"]
    assert (routing["expert"], routing["fallback"]) == (None, True)
    refused = await world.ask("PUT", "/fallback", {"expert": "general"})
    assert (refused.status, refused.json()["error"]["code"]) == (422, "invalid_fallback")
    await world.register(lora, "general", manifest="{}")
    routing = (await world.ask("POST", "/route", {"prompt": "hi"})).json()["routing"]
    assert (routing["expert"], routing["version"]) == ("general", 2)


async def test_it_survives_a_restart_and_goes_with_its_last_version(start: Start, lora: Path) -> None:
    async with start() as world:
        await world.register(lora, "general", manifest="{}")
        await set_fallback(world, "general")
    async with start() as world:
        assert (await world.ask("GET", "/fallback")).json()["version"] == 1
        in_use = await world.ask("DELETE", "/experts/general/versions/1")
        assert (in_use.status, in_use.json()["error"]["code"]) == (409, "version_in_use")
        await world.ask("DELETE", "/experts/general/aliases/live")
        await world.ask("DELETE", "/experts/general/versions/1")
        assert (await world.ask("GET", "/fallback")).json()["expert"] is None
        assert (await world.ask("POST", "/route", {"prompt": "hi"})).json()["routing"]["expert"] is None
