"""Shortlists and guards over HTTP: profiles made and refused at registration, a chain that asks only the proposed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expert_store import PROFILE_FILE, Guard, Profile
from server.model.chat import ChatFormat
from server.model.feature import FEATURE, PromptFeature
from tests.api.conftest import MANIFEST, App, Part, Start, registration_parts
from tests.api.test_real_engine import RealApp, real  # noqa: F401 - a fixture
from tests.support import asgi

pytestmark = pytest.mark.anyio
SAMPLES = {"foxes": ["the quick brown fox", "a quick fox"], "dogs": ["over the lazy dog", "a lazy dog"]}


def manifest(samples: list[str]) -> str:
    return json.dumps({**MANIFEST, "samples": samples})


@pytest.fixture
async def pool(world: App, alora: Path) -> App:
    """Two experts with profiles made of samples, and between them one without."""
    for name, samples in (("foxes", SAMPLES["foxes"]), ("unknown", []), ("dogs", SAMPLES["dogs"])):
        assert (await world.register(alora, name, manifest=manifest(samples))).status == 201
    return world


async def route(world: App, prompt: str, **fields: Any) -> dict[str, Any]:
    reply = await world.ask("POST", "/route", {"prompt": prompt, **fields})
    assert reply.status == 200, reply.body
    return dict(reply.json()["routing"])


async def test_the_chain_asks_the_nearest_and_those_without_a_profile(pool: App) -> None:
    for prompt, expected in (("that quick fox", ["unknown", "foxes"]), ("this lazy dog", ["dogs", "unknown"])):
        routing = await route(pool, prompt, shortlist=1)
        assert [asked["expert"] for asked in routing["considered"]] == expected
        assert routing["reason"] == "no_acceptance"
        assert routing["shortlist"].pop("ms") >= 0
        assert routing["shortlist"] == {"size": 1, "proposed": 1, "unprofiled": 1, "unfamiliar": 0, "left_out": 1}
    assert await pool.metric('lora_relay_shortlist_experts_total{outcome="left_out"}') == 2
    assert await pool.metric("lora_relay_shortlist_seconds_count") == 2


async def test_without_a_shortlist_everybody_is_asked(pool: App) -> None:
    for fields in ({}, {"shortlist": 0}, {"shortlist": None}):
        routing = await route(pool, "that quick fox", **fields)
        assert len(routing["considered"]) == 3
        assert routing["shortlist"] is None


async def test_a_shortlist_reserves_no_more_than_its_experts_need(pool: App) -> None:
    await route(pool, "that quick fox", shortlist=1)
    await route(pool, "that quick fox")
    assert [session.branches.activated for session in pool.engine.sessions[-2:]] == [2, 3]


async def test_the_servers_setting_is_the_default_and_profiles_survive_a_restart(start: Start, alora: Path) -> None:
    async with start() as first:
        for name, samples in SAMPLES.items():
            await first.register(alora, name, manifest=manifest(samples))
    async with start(shortlist=1) as again:
        for prompt, name in (("that quick fox", "foxes"), ("this lazy dog", "dogs")):
            assert [asked["expert"] for asked in (await route(again, prompt))["considered"]] == [name]
        assert len((await route(again, "that quick fox", shortlist=0))["considered"]) == 2
        body = {"model": "relay/chain", "prompt": "that quick fox"}
        answer = (await again.ask("POST", "/v1/completions", body)).json()
        assert answer["routing"]["shortlist"]["left_out"] == 1


@pytest.mark.parametrize("value", [-1, 4097, 1.5, "8", True])
async def test_a_shortlist_out_of_range_is_refused_by_name(world: App, value: Any) -> None:
    for path in ("/route", "/generate"):
        reply = await world.ask("POST", path, {"prompt": "hi", "shortlist": value})
        assert (reply.status, reply.json()["error"]["param"]) == (422, "shortlist")


async def test_a_named_expert_and_the_base_need_no_shortlist(pool: App) -> None:
    assert (await route(pool, "hi", shortlist=1, expert="dogs"))["shortlist"] is None
    assert (await route(pool, "hi", shortlist=1, router="none"))["shortlist"] is None


def profile(world: App, **changes: Any) -> bytes:
    width = world.engine.base.model.get_input_embeddings().weight.shape[1]
    values = {"base_fingerprint": world.engine.base.spec.fingerprint, "feature": FEATURE, "width": width, **changes}
    vector = np.zeros(values.pop("width"), np.float32)
    vector[0] = 1
    return Profile(**values, vector_D=vector).to_bytes()


async def upload(world: App, alora: Path, data: bytes, field: str = "profile") -> asgi.Reply:
    return await world.upload([*registration_parts(alora, "sql"), Part(field, data, PROFILE_FILE)])


@pytest.mark.parametrize("field", ["profile", "profile.safetensors"])
async def test_a_profile_that_comes_with_the_adapter_is_kept(world: App, alora: Path, field: str) -> None:
    reply = await upload(world, alora, profile(world), field)
    assert reply.status == 201, reply.body
    [check] = [check for check in reply.json()["checks"] if check["name"] == "profile"]
    assert "came with" in check["detail"]
    kept = world.store.catalog.resolve("sql").profile
    assert kept is not None
    assert kept.vector_D[0] == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_fingerprint": "sha256:" + "1" * 64}, "made on base sha256:1111"),
        ({"feature": "token-mean/0"}, "'token-mean/0', this server compares 'token-mean/1'"),
        ({"width": 3}, "3 values"),
    ],
)
async def test_a_profile_that_does_not_fit_is_refused(
    world: App, alora: Path, changes: dict[str, Any], says: str
) -> None:
    reply = await upload(world, alora, profile(world, **changes))
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (422, "invalid_adapter", "profile.safetensors")
    assert says in error["message"]
    assert world.store.catalog.generation == 0


async def guarded_profile(world: App, samples: list[str], negatives: list[str]) -> bytes:
    """Knows prompts about as near to the samples as one sample is to another."""
    base = world.engine.base
    chat = ChatFormat(base.tokenizer)
    feature = PromptFeature(base, chat)
    own, others = (
        [feature.of(chat.render([{"role": "user", "content": text}]).tokens) for text in texts]
        for texts in (samples, negatives)
    )
    centre = np.mean(others, axis=0)
    away = np.mean(own, axis=0) - centre
    guard = Guard(centre, away / np.linalg.norm(away), 0.7)
    profile = feature.profile(chat.render([{"role": "user", "content": text}]).tokens for text in samples)
    return replace(profile, guard=guard).to_bytes()


@pytest.fixture
async def guarded(world: App, alora: Path) -> App:
    """Two experts whose guards know their own prompts, and between them one that has none."""
    for name, other in (("foxes", "dogs"), ("unknown", ""), ("dogs", "foxes")):
        parts = registration_parts(alora, name, manifest=manifest([]))
        if other:
            data = await guarded_profile(world, SAMPLES[name], SAMPLES[other])
            parts.append(Part("profile", data, PROFILE_FILE))
        assert (await world.upload(parts)).status == 201
    return world


async def test_whose_guard_does_not_know_such_prompts_is_not_asked(guarded: App) -> None:
    for prompt, expected in (("that quick fox", ["unknown", "foxes"]), ("this lazy dog", ["dogs", "unknown"])):
        routing = await route(guarded, prompt)
        assert [asked["expert"] for asked in routing["considered"]] == expected
        routing["shortlist"].pop("ms")
        assert routing["shortlist"] == {"size": 0, "proposed": 1, "unprofiled": 1, "unfamiliar": 1, "left_out": 0}
    assert await guarded.metric('lora_relay_shortlist_experts_total{outcome="unfamiliar"}') == 2
    assert [session.branches.activated for session in guarded.engine.sessions[-2:]] == [2, 2]


async def test_who_is_guarded_stands_with_the_expert_and_the_chain(guarded: App) -> None:
    members = (await guarded.ask("GET", "/chain")).json()["members"]
    assert {member["expert"]: member["guarded"] for member in members} == {
        "foxes": True,
        "unknown": False,
        "dogs": True,
    }
    [version] = (await guarded.ask("GET", "/experts/foxes")).json()["versions"]
    assert version["guarded"]


async def test_a_request_may_do_without_guards(guarded: App) -> None:
    routing = await route(guarded, "that quick fox", guard=False)
    assert len(routing["considered"]) == 3
    assert routing["shortlist"] is None


async def test_a_server_without_guards_hears_them_where_a_request_says_so(start: Start, alora: Path) -> None:
    async with start(no_guard=True) as world:
        data = await guarded_profile(world, SAMPLES["foxes"], SAMPLES["dogs"])
        await world.upload([*registration_parts(alora, "foxes"), Part("profile", data, PROFILE_FILE)])
        for fields, asked in (({}, 1), ({"guard": None}, 1), ({"guard": True}, 0)):
            assert len((await route(world, "this lazy dog", **fields))["considered"]) == asked
    async with start() as world:
        routing = await route(world, "this lazy dog")
        assert (routing["considered"], routing["fallback"], routing["reason"]) == ([], True, "no_acceptance")
        assert routing["shortlist"]["unfamiliar"] == 1


@pytest.mark.parametrize(
    "messages",
    [
        ["user", "assistant", "user"],
        ["system", "user"],
        ["user", "user"],
    ],
)
async def test_guards_judge_no_conversations(guarded: App, messages: list[str]) -> None:
    said = [{"role": role, "content": "this lazy dog"} for role in messages]
    reply = await guarded.ask("POST", "/route", {"messages": said, "guard": True})
    assert len(reply.json()["routing"]["considered"]) == 3
    alone = await guarded.ask("POST", "/route", {"messages": said[-1:]})
    assert len(alone.json()["routing"]["considered"]) == 2


async def test_guards_judge_no_raw_prompts(guarded: App) -> None:
    reply = await guarded.ask("POST", "/v1/completions", {"model": "relay/chain", "prompt": "this lazy dog"})
    assert len(reply.json()["routing"]["considered"]) == 3


async def test_a_shadow_chain_hears_guards_as_well(guarded: App) -> None:
    routing = await route(guarded, "this lazy dog", expert="foxes", shadow=["chain"])
    assert [asked["expert"] for asked in routing["considered"]] == []
    assert guarded.engine.sessions[-1].scored == ["dogs@1", "unknown@1"]


async def test_a_registration_says_how_many_of_its_samples_the_guard_knows(world: App, alora: Path) -> None:
    data = await guarded_profile(world, SAMPLES["foxes"], SAMPLES["dogs"])
    asked = manifest(["that quick fox", "this lazy dog"])
    parts = [*registration_parts(alora, "foxes", manifest=asked), Part("profile", data, PROFILE_FILE)]
    checks = (await world.upload(parts)).json()["checks"]
    [detail] = [check["detail"] for check in checks if check["name"] == "profile"]
    assert detail.endswith("with a guard that knows 1 of 2 samples")


async def test_a_shortlist_chooses_among_those_whose_guards_agree(guarded: App) -> None:
    routing = await route(guarded, "that quick fox", shortlist=1)
    assert [asked["expert"] for asked in routing["considered"]] == ["unknown", "foxes"]
    assert (routing["shortlist"]["unfamiliar"], routing["shortlist"]["left_out"]) == (1, 0)


async def test_a_named_expert_is_not_asked_whether_it_knows_such_prompts(guarded: App) -> None:
    routing = await route(guarded, "this lazy dog", expert="foxes")
    assert (routing["expert"], routing["shortlist"]) == ("foxes", None)


@pytest.mark.parametrize("value", [0, 1, "true", []])
async def test_a_guard_that_is_not_true_or_false_is_refused_by_name(world: App, value: Any) -> None:
    reply = await world.ask("POST", "/route", {"prompt": "hi", "guard": value})
    assert (reply.status, reply.json()["error"]["param"]) == (422, "guard")


async def test_the_real_engine_answers_through_a_shortlist_as_the_expert_named(
    real: RealApp,  # noqa: F811
    alora: Path,
) -> None:
    for name, samples in SAMPLES.items():
        await real.register(alora, name, manifest=manifest(samples), threshold="0.001")
    routed = await real.text("that quick fox", shortlist=1)
    assert routed == await real.text("that quick fox", expert="foxes")
    exact, whole = [await route(real, "that quick fox", shortlist=size) for size in (0, 9)]
    assert whole.pop("shortlist") is not None
    assert exact.pop("shortlist") is None
    assert whole["expert"] == exact["expert"] == "dogs", "both accept, and the chain's order decides"
