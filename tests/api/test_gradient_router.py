"""A pool with centroids over HTTP: registered, routed by gradient, and what is refused."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from expert_store import CENTROID_FILE, Centroid, Origin, digest_adapter, read_centroid
from server.model.base import load_base
from server.model.chat import ChatFormat
from server.model.gradient import FEATURE, GradientFeature, GradientRunner, GradientWorker
from server.model.sketch import Projection
from tests.api.conftest import MANIFEST, App, Part, Start, registration_parts
from tests.support import asgi, tiny

pytestmark = pytest.mark.anyio
PROJECTION = Projection(width=512, seed=4)
TOPICS = {"pool-0": "the quick brown fox", "pool-1": "What is the capital of France? 0123"}
PLAIN = {"manifest": "{}"}


@pytest.fixture(scope="module")
def pool(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base adapter, and two experts with the centroids of their topics beside them."""
    root = tmp_path_factory.mktemp("pool")
    base = load_base(str(base_folder), dtype="fp32", device="cpu", cache=root)
    chat = ChatFormat(base.tokenizer)
    folders = {"pool-base": tiny.write_adapter(root / "base", base_folder, kind="lora", seed=9)}
    feature = GradientFeature(GradientRunner(base, chat), folders["pool-base"], PROJECTION)
    origin = Origin(base.spec.fingerprint, digest_adapter(folders["pool-base"]), FEATURE, PROJECTION.seed)
    for seed, (name, topic) in enumerate(TOPICS.items()):
        folders[name] = tiny.write_adapter(root / name, base_folder, kind="lora", seed=seed, targets=["v_proj"])
        vector = feature.of(chat.render([{"role": "user", "content": topic}]))
        (folders[name] / CENTROID_FILE).write_bytes(Centroid(origin, vector).to_bytes())
    return folders


async def upload(world: App, folder: Path, name: str, centroid: bytes | None = None, **fields: str) -> asgi.Reply:
    parts = registration_parts(folder, name, **{**PLAIN, **fields})
    if centroid is None and (folder / CENTROID_FILE).exists():
        centroid = (folder / CENTROID_FILE).read_bytes()
    if centroid is not None:
        parts.append(Part("centroid", centroid, CENTROID_FILE))
    return await world.upload(parts)


async def register_base(world: App, pool: dict[str, Path]) -> None:
    assert (await upload(world, pool["pool-base"], "pool-base")).status == 201
    await make_base(world)


async def make_base(world: App) -> None:
    assert (await world.ask("PUT", "/experts/pool-base/aliases/gradient-base", {"version": 1})).status == 200


async def register_all(world: App, pool: dict[str, Path]) -> None:
    await register_base(world, pool)
    for name in TOPICS:
        reply = await upload(world, pool[name], name)
        assert reply.status == 201, reply.body
        said = {check["name"]: check["detail"] for check in reply.json()["checks"]}
        assert said["centroid"] == "it came with one, made with base adapter pool-base@1"


async def test_a_registered_pool_is_ready_and_routes_by_topic(world: App, pool: dict[str, Path]) -> None:
    await register_all(world, pool)
    [listed] = [r for r in (await world.ask("GET", "/routers")).json()["routers"] if r["router"] == "gradient"]
    assert (listed["ready"], listed["version"], listed["missing"]) == (True, 1, [])
    for name, topic in TOPICS.items():
        reply = await world.ask("POST", "/generate", {"prompt": topic, "router": "gradient"})
        routing = reply.json()["routing"]
        assert (routing["reason"], routing["expert"], routing["fallback"]) == ("weighted", None, False)
        assert routing["experts"][0]["expert"] == name
        assert sum(share["weight"] for share in routing["experts"]) == pytest.approx(1)
        scores = {considered["expert"]: considered["score"] for considered in routing["considered"]}
        assert scores[name] == pytest.approx(1, abs=1e-5)
    assert world.engine.num_open == 0
    assert world.engine.sessions[-1].branches.mixed == 3


async def test_the_request_says_how_many_are_mixed_and_what_the_base_adapter_weighs(
    world: App, pool: dict[str, Path]
) -> None:
    await register_all(world, pool)
    body = {"prompt": TOPICS["pool-1"], "router": "gradient", "gradient_experts": 1}
    routing = (await world.ask("POST", "/route", body)).json()["routing"]
    assert [(share["expert"], share["weight"]) for share in routing["experts"]] == [("pool-1", 1.0)]
    assert world.engine.sessions[-1].branches.mixed == 2
    await world.ask("POST", "/route", {**body, "gradient_base_weight": 0})
    assert world.engine.sessions[-1].branches.mixed == 1, "the base adapter takes no part"
    for weight in (-1, 11, "much"):
        refused = await world.ask("POST", "/route", {**body, "gradient_base_weight": weight})
        assert (refused.status, refused.json()["error"]["param"]) == (422, "gradient_base_weight")
    refused = await world.ask("POST", "/route", {**body, "gradient_experts": 17})
    assert (refused.status, refused.json()["error"]["param"]) == (422, "gradient_experts")


async def test_without_a_pool_it_is_a_409_that_says_what_to_run(world: App, pool: dict[str, Path]) -> None:
    body = {"prompt": "hi", "router": "gradient"}
    for step in ("nothing", "a base adapter"):
        if step != "nothing":
            await register_base(world, pool)
        reply = await world.ask("POST", "/generate", body)
        error = reply.json()["error"]
        assert (reply.status, error["code"]) == (409, "router_not_ready")
        assert "relay train elrea" in error["message"]
    assert "no expert has a centroid" in error["message"]


async def test_another_base_adapter_makes_the_pool_unready_instead_of_wrong(
    world: App, pool: dict[str, Path], lora: Path
) -> None:
    await register_all(world, pool)
    assert (await upload(world, lora, "pool-base")).status == 201
    await world.ask("PUT", "/experts/pool-base/aliases/gradient-base", {"version": 2})
    reply = await world.ask("POST", "/generate", {"prompt": "hi", "router": "gradient"})
    assert reply.status == 409
    assert "pool-0@1 does not fit: it was made with base adapter sha256:" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base_fingerprint": "sha256:1"}, "this server runs"),
        ({"base_adapter": "sha256:1"}, "the pool's is pool-base@1"),
        ({"feature": "other/1"}, "'other/1'"),
    ],
)
async def test_a_centroid_that_does_not_fit_is_refused(
    world: App, pool: dict[str, Path], change: dict[str, str], says: str
) -> None:
    await register_base(world, pool)
    centroid = read_centroid(pool["pool-0"] / CENTROID_FILE)
    origin = Origin(**{**vars(centroid.origin), **change})
    reply = await upload(world, pool["pool-0"], "pool-0", Centroid(origin, centroid.vector_D).to_bytes())
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (422, "invalid_adapter", CENTROID_FILE)
    assert says in error["message"]
    assert "pool-0" not in world.store.catalog.experts


async def gradient_router(world: App) -> dict[str, Any]:
    listed = (await world.ask("GET", "/routers")).json()["routers"]
    [found] = [router for router in listed if router["router"] == "gradient"]
    assert isinstance(found, dict)
    return found


async def pool_once_nothing_is_pending(world: App) -> dict[str, float]:
    """Name to cosine of everybody in it."""
    async with asyncio.timeout(60):
        while (await gradient_router(world))["pending"]:
            await asyncio.sleep(0.02)
    routing = (await world.ask("POST", "/route", {"prompt": "hello there", "router": "gradient"})).json()["routing"]
    return {considered["expert"]: considered["score"] for considered in routing["considered"]}


async def test_who_came_before_the_base_adapter_gets_the_same_centroid_in_the_background(
    start: Start, pool: dict[str, Path], alora: Path, lora: Path
) -> None:
    async with start() as world:
        await world.register(alora, "early")
        await world.register(lora, "silent", manifest="{}")
        assert (await gradient_router(world))["pending"] == 0
        for name, folder in pool.items():
            assert (await upload(world, folder, name)).status == 201
        await make_base(world)  # last: before the others are there it would be made as they are not
        assert (await gradient_router(world))["pending"] <= 1
        await world.register(alora, "late")
        scores = await pool_once_nothing_is_pending(world)
        assert scores.keys() == {"early", "late", *TOPICS}
        assert scores["early"] == pytest.approx(scores["late"], abs=1e-6)
        assert world.store.catalog.resolve("early").centroid is None
        assert world.store.verify() == []
    [kept] = (world.settings.cache / "centroids").iterdir()
    before = kept.stat().st_mtime_ns
    async with start() as world:
        assert await pool_once_nothing_is_pending(world) == pytest.approx(scores)
    assert kept.stat().st_mtime_ns == before, "it is read, not made again"


async def test_who_comes_between_the_base_adapter_and_its_pool_is_projected_as_the_pool_is(
    world: App, pool: dict[str, Path], alora: Path
) -> None:
    await register_base(world, pool)
    said = said_of_centroid(await world.register(alora, "between"))
    assert said.startswith("none yet, since the pool has none that says how they are projected")
    for name in TOPICS:
        assert (await upload(world, pool[name], name)).status == 201
    assert (await pool_once_nothing_is_pending(world)).keys() == {"between", *TOPICS}


async def test_while_the_first_is_being_made_there_is_nothing_to_run_and_a_failure_is_said(
    world: App, pool: dict[str, Path], alora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreadable(*_: Any, **__: Any) -> Any:
        raise OSError("no such disk")

    monkeypatch.setattr(GradientWorker, "of", unreadable)
    await world.register(alora, "early")
    await register_base(world, pool)
    async with asyncio.timeout(60):
        while not (listed := await gradient_router(world))["problems"]:
            await asyncio.sleep(0.02)
    assert (listed["ready"], listed["pending"], listed["run"]) == (False, 1, None)
    assert listed["missing"][0].endswith("wait for the first")
    [problem] = listed["problems"]
    assert problem == "the centroid of early@1 could not be made yet and is tried again: no such disk"
    error = (await world.ask("POST", "/route", {"prompt": "hi", "router": "gradient"})).json()["error"]
    assert "relay train elrea" not in error["message"]
    assert "no such disk" in error["message"]


async def test_another_base_adapter_asks_for_others(world: App, pool: dict[str, Path], alora: Path) -> None:
    await register_all(world, pool)
    await world.register(alora, "late")
    old = await pool_once_nothing_is_pending(world)
    assert (await upload(world, pool["pool-1"], "next-base")).status == 201
    assert (await world.ask("DELETE", "/experts/pool-base/aliases/gradient-base")).status == 200
    assert (await gradient_router(world))["ready"] is False
    assert (await world.ask("PUT", "/experts/next-base/aliases/gradient-base", {"version": 1})).status == 200
    async with asyncio.timeout(60):
        while not (await gradient_router(world))["ready"]:
            await asyncio.sleep(0.02)
    new = await pool_once_nothing_is_pending(world)
    assert (old.keys(), new.keys()) == ({"late", *TOPICS}, {"late"})
    assert new["late"] == pytest.approx(1, abs=1e-5), "its sample's gradient through the new base adapter"


def said_of_centroid(reply: asgi.Reply) -> str:
    assert reply.status == 201, reply.body
    return str({check["name"]: check["detail"] for check in reply.json()["checks"]}["centroid"])


async def test_an_expert_from_elsewhere_gets_its_centroid_from_samples(
    world: App, pool: dict[str, Path], alora: Path
) -> None:
    assert "for want of a base adapter in the pool: one is made of its samples in the background" in said_of_centroid(
        await world.register(alora, "early")
    )
    silent = said_of_centroid(await world.register(alora, "silent", manifest="{}"))
    assert silent == "none, for want of samples: the gradient router leaves it out"
    await register_all(world, pool)
    assert "made from 1 samples" in said_of_centroid(await world.register(alora, "late"))
    again = said_of_centroid(await upload(world, pool["pool-base"], "pool-base", manifest=json.dumps(MANIFEST)))
    assert again.startswith("none: pool-base@1 is the base adapter")
    centroid = world.store.catalog.resolve("late").centroid
    trained = world.store.catalog.resolve("pool-0").centroid
    assert centroid is not None
    assert trained is not None
    assert (centroid.origin, centroid.vector_D.shape) == (trained.origin, trained.vector_D.shape)
    assert world.store.catalog.resolve("early").centroid is None
    assert (await pool_once_nothing_is_pending(world))["late"] == pytest.approx(1, abs=1e-5)
    assert world.store.verify() == []


async def test_it_can_be_the_default_and_a_shadow(start: Start, pool: dict[str, Path]) -> None:
    async with start(router="gradient", gradient_base_weight=0.0) as world:
        await register_all(world, pool)
        answer = (await world.ask("POST", "/generate", {"prompt": "hi", "shadow": ["chain"]})).json()
        assert answer["routing"]["router"] == "gradient"
        assert answer["routing"]["shadow"][0]["agreed"] is False
        body = {"prompt": "hi", "router": "chain", "shadow": ["gradient"]}
        [shadow] = (await world.ask("POST", "/route", body)).json()["routing"]["shadow"]
        assert (shadow["problem"], len(shadow["experts"])) == (None, 2)
        [shadow] = (await world.ask("POST", "/route", body | {"gradient_experts": 1})).json()["routing"]["shadow"]
        assert len(shadow["experts"]) == 1
        assert world.engine.sessions[-1].branches.mixed == 0


async def test_a_real_engine_answers_and_streams_by_gradient(
    base_folder: Path, pool: dict[str, Path], tmp_path: Path
) -> None:
    from server.app import build_app
    from server.settings import Settings

    settings = Settings(
        base=str(base_folder), store=tmp_path / "store", cache=tmp_path, no_demo=True, dtype="fp32", kv_memory=1 << 24
    )
    world = App(build_app(settings), settings)
    async with asgi.running(world.app):
        await register_all(world, pool)
        body = {"prompt": TOPICS["pool-0"], "router": "gradient", "max_new_tokens": 6, "ignore_eos": True}
        whole = (await world.ask("POST", "/generate", body)).json()
        assert (whole["usage"]["completion_tokens"], whole["finish_reason"]) == (6, "length")
        assert whole["routing"]["experts"][0]["expert"] == "pool-0"
        events = (await world.ask("POST", "/generate", {**body, "stream": True})).events()
        assert "".join(data["text"] for kind, data in events if kind == "token") == whole["text"]
        single = (await world.ask("POST", "/generate", {**body, "router": "none"})).json()
        assert whole["usage"]["computed_tokens"] > 2 * single["usage"]["computed_tokens"]
        stop = whole["text"][1:4]
        stopped = (await world.ask("POST", "/generate", {**body, "stop": [stop]})).json()
        assert (stopped["text"], stopped["finish_reason"]) == (whole["text"].partition(stop)[0], "stop")


async def test_a_damaged_base_adapter_is_the_servers_fault_and_not_the_requests(
    world: App, pool: dict[str, Path]
) -> None:
    await register_all(world, pool)
    (world.store.root / "experts/pool-base/1/adapter_model.safetensors").unlink()
    reply = await world.ask("POST", "/generate", {"prompt": "what is the fox", "router": "gradient"})
    error = reply.json()["error"]
    assert (reply.status, error["code"]) == (500, "corrupt_store")
    assert "cannot be read any more" in error["message"]
    assert str(world.store.root) not in error["message"]
