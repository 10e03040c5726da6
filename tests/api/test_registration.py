"""`POST /experts`: what is published, what is refused, and that a refusal changes nothing."""

import asyncio
import errno
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from expert_store import CorruptStore
from server.api import form
from server.registry import MAX_RUNNING_REGISTRATIONS
from tests.api.conftest import MANIFEST, App, Part, Start, multipart, registration_parts
from tests.support import tiny
from tests.support.waiting import until_true

pytestmark = pytest.mark.anyio


async def test_a_registered_expert_is_routable_with_the_next_request(world: App, alora: Path) -> None:
    reply = await world.register(alora, "sql")
    assert reply.status == 201
    answer = reply.json()
    assert list(answer) == ["name", "version", "digest", "kind", "rank", "checks", "catalog_generation"]
    assert (answer["name"], answer["version"], answer["kind"], answer["rank"]) == ("sql", 1, "alora", 4)
    assert answer["catalog_generation"] == 1
    assert all(check["passed"] and check["detail"] for check in answer["checks"])
    assert [check["name"] for check in answer["checks"]][-3:] == ["indicators", "invocation", "effect_on_logits"]
    assert (await world.ask("POST", "/route", {"prompt": "sql?"})).json()["routing"]["expert"] == "sql"
    assert world.store.verify() == []
    assert await world.metric('lora_relay_registrations_total{outcome="registered"}') == 1


async def test_parts_may_be_named_after_the_files(world: App, lora: Path) -> None:
    parts = [Part(file.name, file.read_bytes(), file.name) for file in lora.iterdir() if file.suffix != ".md"]
    reply = await world.upload([*parts, Part("name", b"plain")], chunk_bytes=7_001)
    assert (reply.status, reply.json()["kind"]) == (201, "lora")


async def test_the_manifest_may_be_a_file_and_names_the_expert(world: App, alora: Path) -> None:
    draft = json.dumps({**MANIFEST, "name": "sql", "threshold": 0.7}).encode()
    parts = [p for p in registration_parts(alora, None) if p.field != "manifest"]
    assert (await world.upload([*parts, Part("manifest", draft, "manifest.json")])).status == 201
    assert (await world.ask("GET", "/experts/sql/versions/1")).json()["threshold"] == 0.7


async def test_fields_of_the_form_win_over_the_manifest(world: App, alora: Path) -> None:
    await world.register(alora, "sql", description="said here", threshold="0.25")
    record = (await world.ask("GET", "/experts/sql/versions/1")).json()
    assert (record["description"], record["threshold"]) == ("said here", 0.25)
    assert record["samples"] == ["hello there"]


async def test_activate_false_leaves_live_where_it_is(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    await world.register(alora, "sql", activate="false")
    record = (await world.ask("GET", "/experts/sql")).json()
    assert (record["live_version"], record["num_versions"]) == (1, 2)


async def test_the_base_of_the_manifest_must_be_this_one(world: App, alora: Path) -> None:
    here = world.engine.base.spec.fingerprint
    there = "sha256:" + "1" * 64
    reply = await world.register(alora, "sql", manifest=json.dumps({**MANIFEST, "base_fingerprint": there}))
    error = refused(reply, "base_fingerprint")
    assert here in error["message"]
    assert there in error["message"]
    assert (await world.register(alora, "sql", manifest=json.dumps({"base_fingerprint": here}))).status == 201


@pytest.mark.parametrize("effect", [0.0, math.nan, math.inf])
async def test_an_expert_without_effect_is_refused(world: App, alora: Path, effect: float) -> None:
    world.engine.effect = effect
    refused(await world.register(alora, "sql"), "adapter_model.safetensors")
    assert world.store.catalog.generation == 0
    assert world.engine.forgotten == ["sql@1"], "its bytes stay in memory"


async def test_the_effect_is_measured_where_the_expert_is_awake(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    [candidate] = world.engine.measured
    assert candidate.digest.startswith("candidate:")
    assert candidate.invocation_tokens == world.engine.chat.generation_prompt
    assert world.engine.forgotten == []


def altered(folder: Path, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The adapter's config, changed."""
    config = json.loads((folder / "adapter_config.json").read_text())
    change(config)
    return json.dumps(config).encode()


def tensors(folder: Path, change: Callable[[str, Any], Any]) -> bytes:
    """The adapter's weights, changed tensor by tensor."""
    return save({key: change(key, value) for key, value in load_file(folder / "adapter_model.safetensors").items()})


REFUSALS: dict[str, tuple[str, Callable[[Path, dict[str, Part]], None]]] = {}


def refusal(param: str) -> Callable[[Callable[[Path, dict[str, Part]], None]], None]:
    """Notes a way to spoil a good registration, and the field its refusal names."""

    def note(spoil: Callable[[Path, dict[str, Part]], None]) -> None:
        REFUSALS[spoil.__name__] = (param, spoil)

    return note


@refusal("adapter_config.json")
def no_config(_: Path, parts: dict[str, Part]) -> None:
    del parts["adapter_config"]


@refusal("adapter_model.safetensors")
def no_weights(_: Path, parts: dict[str, Part]) -> None:
    del parts["adapter_model"]


@refusal("adapter_model.safetensors")
def pickle_under_the_right_name(_: Path, parts: dict[str, Part]) -> None:
    parts["adapter_model"] = Part("adapter_model", b"\x80\x04\x95" + b"x" * 64, "adapter_model.safetensors")


@refusal("adapter_model.bin")
def pickle_by_name(_: Path, parts: dict[str, Part]) -> None:
    parts["adapter_model"] = Part("adapter_model", b"\x80\x04", "adapter_model.bin")


@refusal("adapter_model.bin")
def pickle_by_field(_: Path, parts: dict[str, Part]) -> None:
    parts["adapter_model"] = Part("adapter_model.bin", b"\x80\x04", "adapter_model.bin")


@refusal("adapter_model.safetensors")
def not_a_number(folder: Path, parts: dict[str, Part]) -> None:
    parts["adapter_model"] = Part("adapter_model", tensors(folder, lambda _, value: value * np.nan), "x")


@refusal("adapter_model.safetensors")
def another_base(folder: Path, parts: dict[str, Part]) -> None:
    def wider(key: str, value: Any) -> Any:
        return np.concatenate([value, value], axis=1) if "lora_A" in key else value

    parts["adapter_model"] = Part("adapter_model", tensors(folder, wider), "x")


@refusal("target_modules")
def unknown_target(folder: Path, parts: dict[str, Part]) -> None:
    config = altered(folder, lambda c: c.update(target_modules=["no_such_proj"]))
    parts["adapter_config"] = Part("adapter_config", config, "x")


@refusal("alora_invocation_tokens")
def empty_invocation(folder: Path, parts: dict[str, Part]) -> None:
    config = altered(folder, lambda c: c.update(alora_invocation_tokens=[]))
    parts["adapter_config"] = Part("adapter_config", config, "x")


@refusal("alora_invocation_tokens")
def invocation_outside_the_generation_prompt(folder: Path, parts: dict[str, Part]) -> None:
    config = altered(folder, lambda c: c.update(alora_invocation_tokens=[7, 8, 9]))
    parts["adapter_config"] = Part("adapter_config", config, "x")


@refusal("alora_invocation_tokens")
def invocation_outside_the_vocabulary(folder: Path, parts: dict[str, Part]) -> None:
    config = altered(folder, lambda c: c.update(alora_invocation_tokens=[2_000_000_000]))
    parts["adapter_config"] = Part("adapter_config", config, "x")
    parts["manifest"] = Part("manifest", b"{}")  # one that is never asked need not lie in the generation prompt


@refusal("name")
def bad_name(_: Path, parts: dict[str, Part]) -> None:
    parts["name"] = Part("name", b"../SQL")


@refusal("name")
def empty_name(_: Path, parts: dict[str, Part]) -> None:
    parts["name"] = Part("name", b"")


@refusal("name")
def no_name(_: Path, parts: dict[str, Part]) -> None:
    del parts["name"]


@refusal("indicators")
def indicators_with_one_beginning(_: Path, parts: dict[str, Part]) -> None:
    parts["manifest"] = Part("manifest", b'{"indicators": {"accept": "<<pos>>", "reject": "<<pos>>x"}}')


@refusal("threshold")
def threshold_out_of_range(_: Path, parts: dict[str, Part]) -> None:
    parts["threshold"] = Part("threshold", b"1.5")


@refusal("threshold")
def threshold_not_a_number(_: Path, parts: dict[str, Part]) -> None:
    parts["threshold"] = Part("threshold", b"nan")


@refusal("colour")
def unknown_manifest_field(_: Path, parts: dict[str, Part]) -> None:
    parts["manifest"] = Part("manifest", b'{"colour": "red"}')


@refusal("colour")
def unknown_form_field(_: Path, parts: dict[str, Part]) -> None:
    parts["colour"] = Part("colour", b"red")


@refusal("adapter_model.safetensors")
def doubled_file(folder: Path, parts: dict[str, Part]) -> None:
    data = (folder / "adapter_model.safetensors").read_bytes()
    parts["again"] = Part("adapter_model.safetensors", data, "adapter_model.safetensors")


@refusal("activate")
def activate_maybe(_: Path, parts: dict[str, Part]) -> None:
    parts["activate"] = Part("activate", b"maybe")


@refusal("description")
def description_in_no_encoding(_: Path, parts: dict[str, Part]) -> None:
    parts["description"] = Part("description", b"\xff\xfe")


@pytest.mark.parametrize("spoil", REFUSALS)
async def test_a_bad_registration_is_refused_by_field_and_changes_nothing(world: App, alora: Path, spoil: str) -> None:
    param, change = REFUSALS[spoil]
    parts = {part.field: part for part in registration_parts(alora, "sql")}
    change(alora, parts)
    refused(await world.upload(list(parts.values())), param)
    assert world.store.catalog.generation == 0
    assert list((world.settings.store / "staging").iterdir()) == []
    assert await world.metric('lora_relay_registrations_total{outcome="refused"}') == 1


async def test_a_rank_over_the_cap_is_refused(start: Start, alora: Path) -> None:
    async with start(max_rank=2) as world:
        refused(await world.register(alora, "sql"), "r")


async def test_an_expert_larger_than_the_host_cache_is_refused_with_both_numbers(
    start: Start, base_folder: Path, tmp_path: Path
) -> None:
    large = tiny.write_adapter(tmp_path / "large", base_folder, kind="lora", rank=128)
    size = (large / "adapter_model.safetensors").stat().st_size
    settings = {"max_rank": 128, "chain_window": 1, "plain_window": 1}
    async with start(expert_memory=1 << 20, **settings) as world:
        reply = await world.register(large, "large")
        error = reply.json()["error"]
        assert (reply.status, error["code"], error["param"]) == (422, "expert_too_large", "adapter_model.safetensors")
        assert f"{size} bytes" in error["message"]
        assert "1048576" in error["message"]
        assert world.engine.measured == []
        assert world.store.catalog.generation == 0
    async with start(expert_memory=size, **settings) as world:
        assert (await world.register(large, "large")).status == 201


async def test_an_upload_over_the_cap_is_413_by_header_and_by_count(start: Start, alora: Path) -> None:
    async with start(max_upload_bytes=2048) as world:
        body, headers = multipart(registration_parts(alora, "sql"))
        declared = {**headers, "content-length": str(len(body))}
        for given in (headers, declared):
            chunks = [body[at : at + 512] for at in range(0, len(body), 512)]
            reply = await world.ask("POST", "/experts", chunks=chunks, headers=given)
            assert (reply.status, reply.json()["error"]["code"]) == (413, "body_too_large")
        assert world.store.catalog.generation == 0
        assert list((world.settings.store / "staging").iterdir()) == []


async def test_a_config_or_field_of_absurd_size_is_413(world: App, alora: Path) -> None:
    for field, size in (("adapter_config", 2 << 20), ("name", 5000), ("manifest", 600_000)):
        parts = [p for p in registration_parts(alora, "sql") if p.field != field]
        reply = await world.upload([Part(field, b" " * size), *parts], chunk_bytes=1 << 16)
        assert (reply.status, reply.json()["error"]["param"]) == (413, field)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", {"content-type": "application/json"}, 415),
        (b"", {}, 415),
        (b"", {"content-type": "multipart/form-data"}, 400),
        (b"", {"content-type": "multipart/form-data; boundary=x"}, 400),
        (b"no form at all", {"content-type": "multipart/form-data; boundary=x"}, 400),
        (b"--x\r\n\r\nv\r\n--x--\r\n", {"content-type": "multipart/form-data; boundary=x"}, 422),
        (b"--x--\r\n", {"content-type": "multipart/form-data; boundary=" + "x" * 400}, 400),
    ],
)
async def test_what_is_no_form_is_refused(world: App, body: bytes, headers: dict[str, str], status: int) -> None:
    reply = await world.ask("POST", "/experts", chunks=[body], headers=headers)
    assert reply.status == status
    assert reply.json()["error"]["message"]


async def test_a_form_cut_short_is_refused(world: App, alora: Path) -> None:
    body, headers = multipart(registration_parts(alora, "sql"))
    reply = await world.ask("POST", "/experts", chunks=[body[:-40]], headers=headers)
    assert reply.status == 400
    assert world.store.catalog.generation == 0


async def test_an_upload_that_breaks_off_leaves_nothing(world: App, alora: Path) -> None:
    body, headers = multipart(registration_parts(alora, "sql"))
    exchange = world.begin("POST", "/experts", chunks=[body[:5000], body[5000:6000]], headers=headers)
    exchange._messages.get_nowait()
    exchange._messages.get_nowait()
    exchange._messages.put_nowait({"type": "http.request", "body": body[:5000], "more_body": True})
    exchange.leave()
    await exchange.finish()
    assert world.store.catalog.generation == 0
    assert list((world.settings.store / "staging").iterdir()) == []


async def test_silent_uploads_give_their_places_back(world: App, alora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "SILENCE_SECONDS", 0.05)
    _, headers = multipart([])
    held = [world.begin("POST", "/experts", chunks=[], headers=headers) for _ in range(MAX_RUNNING_REGISTRATIONS)]
    for exchange in held:
        error = (await exchange.finish()).json()["error"]
        assert (exchange.reply.status, error["code"]) == (400, "malformed_body")
        assert "nothing more of the upload came for 0.05 s" in error["message"]
    assert list((world.settings.store / "staging").iterdir()) == []
    monkeypatch.undo()
    assert (await world.register(alora, "sql")).status == 201


async def test_an_upload_may_take_longer_than_silence_may(
    world: App, alora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that moves only while the upload is being waited for."""
    monkeypatch.setattr(form, "SILENCE_SECONDS", 0.4)
    loop = asyncio.get_running_loop()
    now = loop.time()
    body, headers = multipart(registration_parts(alora, "sql"))
    with monkeypatch.context() as clock:
        clock.setattr(loop, "time", lambda: now)
        exchange = world.begin("POST", "/experts", chunks=[], headers=headers)
        for part in (body[:1000], body[1000:2000], body[2000:3000]):
            exchange.send(part)
            while not (exchange.is_waited_for or exchange.reply.complete):
                await asyncio.sleep(0)
            now += 0.3
            for _ in range(10):  # in which whoever has waited too long would notice
                await asyncio.sleep(0)
    exchange.send(body[3000:], last=True)
    assert (await exchange.finish()).status == 201


async def test_a_damaged_store_is_no_refusal(world: App, alora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CorruptStore(Path("catalog.json"), "is damaged")

    monkeypatch.setattr(world.store, "publish", fail)
    assert (await world.register(alora, "sql")).status == 500
    outcomes = [f'lora_relay_registrations_total{{outcome="{outcome}"}}' for outcome in ("error", "refused")]
    assert [await world.metric(outcome) for outcome in outcomes] == [1, 0]


async def test_a_full_disk_is_told_as_that(world: App, alora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/here")

    with monkeypatch.context() as full:
        full.setattr(world.store, "publish", fail)
        reply = await world.register(alora, "sql")
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["type"]) == (507, "storage_full", "server_error")
    assert "/somewhere" not in error["message"]
    assert await world.metric('lora_relay_errors_total{code="storage_full"}') == 1
    assert (await world.register(alora, "sql")).status == 201


async def test_only_so_many_registrations_run_at_a_time(world: App, alora: Path) -> None:
    _, headers = multipart([])
    held = [world.begin("POST", "/experts", chunks=[], headers=headers) for _ in range(MAX_RUNNING_REGISTRATIONS)]
    registry = world.app.state.serving.registry
    await until_true(lambda: registry._num_running == MAX_RUNNING_REGISTRATIONS)
    reply = await world.register(alora, "sql")
    assert (reply.status, reply.json()["error"]["code"]) == (429, "registrations_busy")
    assert int(reply.headers["retry-after"]) >= 1
    outcomes = [f'lora_relay_registrations_total{{outcome="{outcome}"}}' for outcome in ("busy", "refused")]
    assert [await world.metric(outcome) for outcome in outcomes] == [1, 0]
    for exchange in held:
        exchange.leave()
        await exchange.finish()
    assert (await world.register(alora, "sql")).status == 201


async def test_a_registered_pool_survives_a_restart(start: Start, alora: Path) -> None:
    async with start() as world:
        for name in ("sql", "dates"):
            await world.register(alora, name)
        await world.ask("PUT", "/chain", {"order": ["sql", "dates"]})
        before = (await world.ask("GET", "/chain")).json()
    async with start() as world:
        assert (await world.ask("GET", "/chain")).json() == before


def refused(reply: Any, param: str) -> dict[str, Any]:
    error = reply.json()["error"]
    assert (reply.status, error["param"]) == (422, param), error
    assert error["type"] == "invalid_request_error"
    return dict(error)
