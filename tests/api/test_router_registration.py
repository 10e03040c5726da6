"""Learned routers over HTTP: in use from the next request on, or refused with a reason and nothing changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from expert_store import ROUTER_FILE, RouterDraft
from server.model.gates import Array
from tests.api.conftest import App, Part, Start, new_router, router_parts
from tests.support import asgi

pytestmark = pytest.mark.anyio

LEARNED = {"prompt": "hi", "router": "learned"}


async def send(world: App, parts: list[Part]) -> asgi.Reply:
    return await world.upload(parts, path="/routers/learned")


async def learned_version(world: App) -> int | None:
    listed = (await world.ask("GET", "/routers")).json()["routers"]
    [version] = [router["version"] for router in listed if router["router"] == "learned"]
    return version if version is None else int(version)


@pytest.fixture
async def pool(world: App, lora: Path, alora: Path) -> App:
    """Two plain LoRAs and one that is not."""
    for name in ("sql", "dates"):
        assert (await world.register(lora, name, manifest=None)).status == 201
    assert (await world.register(alora, "asked")).status == 201
    return world


async def test_a_router_is_in_use_from_the_next_request_on(pool: App) -> None:
    assert (await pool.ask("POST", "/generate", LEARNED)).status == 409
    draft, network = new_router(pool, pool.engine.base, {"sql": 3.0, "dates": 0.0})
    reply = await send(pool, router_parts(draft, network.to_bytes()))
    assert reply.status == 201, reply.body
    body = reply.json()
    assert (body["router"], body["version"], body["gates"]) == ("learned", 1, "sigmoid")
    assert body["experts"] == ["sql@1", "dates@1"]
    assert [check["name"] for check in body["checks"]] == ["base", "experts", "slots", "weights"]
    answer = (await pool.ask("POST", "/generate", LEARNED)).json()
    assert [share["expert"] for share in answer["routing"]["experts"]] == ["sql"]

    draft, network = new_router(pool, pool.engine.base, {"dates": 3.0})
    assert (await send(pool, router_parts(draft, network.to_bytes()))).json()["version"] == 2
    answer = (await pool.ask("POST", "/generate", LEARNED)).json()
    assert [share["expert"] for share in answer["routing"]["experts"]] == ["dates"]
    assert await pool.metric('lora_relay_registrations_total{outcome="registered"}') == 5


async def test_it_outlives_a_restart(pool: App, start: Callable[..., Any]) -> None:
    draft, network = new_router(pool, pool.engine.base, {"sql": 3.0})
    assert (await send(pool, router_parts(draft, network.to_bytes()))).status == 201
    async with start() as again:
        assert await learned_version(again) == 1
        assert (await again.ask("POST", "/generate", LEARNED)).status == 200


def changed(draft: RouterDraft, **changes: Any) -> dict[str, Any]:
    return {**draft.model_dump(mode="json"), **changes}


def with_expert(draft: RouterDraft, **changes: Any) -> dict[str, Any]:
    first, *others = draft.model_dump(mode="json")["experts"]
    return changed(draft, experts=[{**first, **changes}, *others])


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        (lambda d: changed(d, base_fingerprint="sha256:" + "0" * 64), "invalid_router", "base_fingerprint"),
        (lambda d: with_expert(d, name="gone"), "invalid_router", "experts"),
        (lambda d: with_expert(d, version=7), "invalid_router", "experts"),
        (lambda d: with_expert(d, digest="sha256:" + "0" * 64), "invalid_router", "experts"),
        (lambda d: changed(d, experts=[d.model_dump(mode="json")["experts"][0]] * 2), "invalid_router", "experts"),
        (lambda d: changed(d, num_layers=d.num_layers + 1), "invalid_router", "num_layers"),
        (lambda d: changed(d, width=1), "invalid_router", "width"),
        (lambda d: changed(d, gates="relu"), "invalid_manifest", "gates"),
        (lambda d: changed(d, experts=[]), "invalid_manifest", "experts"),
        (lambda d: changed(d, more=1), "invalid_manifest", "more"),
        (lambda _: {}, "invalid_manifest", "base_fingerprint"),
        (lambda _: [], "invalid_manifest", None),
    ],
)
async def test_a_manifest_that_does_not_hold_is_refused(pool: App, change: Any, code: str, param: str | None) -> None:
    draft, network = new_router(pool, pool.engine.base, {"sql": 3.0, "dates": 0.0})
    assert (await send(pool, router_parts(draft, network.to_bytes()))).status == 201
    reply = await send(pool, router_parts(change(draft), network.to_bytes()))
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (422, code, param)
    assert await learned_version(pool) == 1
    assert (await pool.ask("POST", "/generate", LEARNED)).status == 200


def spoilt(weight: Array, bias: Array) -> dict[str, bytes]:
    broken = weight.copy()
    broken.flat[3] = np.nan
    infinite = bias.copy()
    infinite.flat[0] = np.inf
    return {
        "empty": b"",
        "noise": b"\xff" * 400,
        "one tensor": save({"weight": weight}),
        "turned": save({"weight": weight.swapaxes(0, 1).copy(), "bias": bias}),
        "fp16": save({"weight": weight.astype(np.float16), "bias": bias.astype(np.float16)}),
        "integers": save({"weight": weight.astype(np.int32), "bias": bias.astype(np.int32)}),
        "nan": save({"weight": broken, "bias": bias}),
        "infinity": save({"weight": weight, "bias": infinite}),
        "long": save({"weight": weight, "bias": bias, "more": np.zeros(1 << 20, np.float32)}),
    }


@pytest.mark.parametrize(
    "kind", ["empty", "noise", "one tensor", "turned", "fp16", "integers", "nan", "infinity", "long"]
)
async def test_weights_that_are_none_are_refused(pool: App, kind: str) -> None:
    draft, network = new_router(pool, pool.engine.base, {"sql": 3.0, "dates": 0.0})
    reply = await send(pool, router_parts(draft, spoilt(network.weight_LED, network.bias_LE)[kind]))
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (422, "invalid_router", ROUTER_FILE)
    assert str(pool.settings.store) not in error["message"]
    assert await learned_version(pool) is None
    assert await pool.metric('lora_relay_registrations_total{outcome="refused"}') == 1


async def test_experts_that_cannot_be_composed_or_are_no_longer_live_are_refused(pool: App, lora: Path) -> None:
    draft, network = new_router(pool, pool.engine.base, {"asked": 3.0})
    error = (await send(pool, router_parts(draft, network.to_bytes()))).json()["error"]
    assert "asked@1 wake up" in error["message"]
    draft, network = new_router(pool, pool.engine.base, {"sql": 3.0})
    assert (await pool.register(lora, "sql", manifest=None)).status == 201
    error = (await send(pool, router_parts(draft, network.to_bytes()))).json()["error"]
    assert "sql@2 is live now" in error["message"]
    assert "relay train router" in error["message"]


async def test_a_router_whose_experts_do_not_fit_the_slots_together_is_refused(start: Start, lora: Path) -> None:
    async with start(expert_slots=1, max_rank=8, chain_window=1, plain_window=1) as world:
        for name in ("sql", "dates"):
            assert (await world.register(lora, name, manifest=None)).status == 201
        draft, network = new_router(world, world.engine.base, {"sql": 3.0, "dates": 3.0})
        reply = await send(world, router_parts(draft, network.to_bytes()))
        assert (reply.status, reply.json()["error"]["code"]) == (422, "invalid_router")
        assert "need 2 slots together, the server has 1" in reply.json()["error"]["message"]


async def test_a_router_over_experts_that_begin_answers_unlike_each_other_is_refused(pool: App, lora: Path) -> None:
    """They compute the same tokens, so one of them would be asked behind an accept string it has never seen."""
    assert (await pool.register(lora, "accepting")).status == 201  # plain, and self-selecting
    draft, network = new_router(pool, pool.engine.base, {"sql": 3.0, "accepting": 3.0})
    reply = await send(pool, router_parts(draft, network.to_bytes()))
    assert (reply.status, reply.json()["error"]["param"]) == (422, "experts")
    assert "sql@1, accepting@1: some answer behind an accept string" in reply.json()["error"]["message"]
    assert await learned_version(pool) is None


@pytest.mark.parametrize(
    ("parts", "code", "param"),
    [
        ([Part("manifest", b"{}")], "invalid_field", "router"),
        ([Part("router", b"x", ROUTER_FILE)], "invalid_field", "manifest"),
        ([Part("weights", b"x", ROUTER_FILE)], "unknown_field", "weights"),
        ([Part("router", b"x", ROUTER_FILE), Part(ROUTER_FILE, b"x", ROUTER_FILE)], "invalid_field", ROUTER_FILE),
    ],
)
async def test_a_form_that_lacks_something_says_what(pool: App, parts: list[Part], code: str, param: str) -> None:
    reply = await send(pool, parts)
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (422, code, param)


async def test_what_is_no_form_is_refused(pool: App) -> None:
    assert (await pool.ask("POST", "/routers/learned", {"router": "x"})).status == 415
    pickled = await send(pool, [Part("router", b"x", "router.pt"), Part("manifest", b"{}")])
    assert (pickled.status, pickled.json()["error"]["code"]) == (422, "invalid_adapter")
