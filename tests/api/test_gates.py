"""Gates over HTTP: registered beside a plain LoRA, shown, asked, and refused by their own file or key."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from tests.api.conftest import MANIFEST, App, Part, Start, registration_parts
from tests.support import tiny

pytestmark = pytest.mark.anyio
CONFIG, WEIGHTS = "gate/adapter_config.json", "gate/adapter_model.safetensors"


def gated_parts(lora: Path, alora: Path, name: str | None, **fields: Any) -> list[Part]:
    """A good registration of a plain LoRA with an activated one as its gate."""
    gate = [
        Part("gate_config", (alora / "adapter_config.json").read_bytes(), "adapter_config.json"),
        Part("gate_weights", (alora / "adapter_model.safetensors").read_bytes(), "adapter_model.safetensors"),
    ]
    return [*registration_parts(lora, name, **fields), *gate]


async def test_a_gated_expert_is_checked_published_shown_and_asked(world: App, lora: Path, alora: Path) -> None:
    reply = await world.upload(gated_parts(lora, alora, "mood", threshold="0.7"))
    assert reply.status == 201, reply.body
    answer = reply.json()
    assert answer["kind"] == "lora"
    checks = [check["name"] for check in answer["checks"]]
    assert {"gate_files", "gate_finite", "gate_size", "indicators", "invocation"} <= set(checks)
    assert checks[-2:] == ["effect_on_logits", "gate_effect_on_logits"]
    assert [expert.kind for expert in world.engine.measured] == ["lora", "alora"]
    assert len({expert.digest for expert in world.engine.measured}) == 2
    assert world.store.verify() == []

    [listed] = (await world.ask("GET", "/experts")).json()["experts"]
    assert (listed["kind"], listed["gated"], listed["chain_position"]) == ("lora", True, 0)
    [version] = (await world.ask("GET", "/experts/mood")).json()["versions"]
    assert (version["gated"], version["self_selecting"]) == (True, True)
    whole = (await world.ask("GET", "/experts/mood/versions/1")).json()
    assert (whole["gate"]["rank"], whole["gate"]["target_modules"]) == (4, ["q_proj"])
    assert whole["gate"]["invocation_tokens"] == list(world.engine.chat.generation_prompt)
    assert (whole["invocation_tokens"], whole["threshold"]) == (None, 0.7)
    assert {CONFIG, WEIGHTS} < set(whole["files"])
    [member] = (await world.ask("GET", "/chain")).json()["members"]
    assert (member["kind"], member["gated"], member["asked"], member["threshold"]) == ("lora", True, True, 0.7)

    routed = (await world.ask("POST", "/route", {"prompt": "mood?"})).json()["routing"]
    assert (routed["expert"], routed["digest"], routed["reason"]) == ("mood", answer["digest"], "accepted")


async def test_an_ungated_expert_says_so(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    assert (await world.ask("GET", "/experts/sql")).json()["gated"] is False
    assert (await world.ask("GET", "/experts/sql/versions/1")).json()["gate"] is None


async def test_a_gated_answer_keeps_its_first_space(world: App, lora: Path, alora: Path) -> None:
    """Behind an accept string one space is stripped; a gated expert's answer has no such string before it."""
    await world.upload(gated_parts(lora, alora, "mood"))
    text = (await world.ask("POST", "/generate", {"prompt": "mood?"})).json()["text"]
    assert text.startswith(" mood: hello")


async def test_parts_of_a_gate_may_be_named_after_the_files(world: App, lora: Path, alora: Path) -> None:
    names = {"gate_config": CONFIG, "gate_weights": WEIGHTS}
    parts = [Part(names.get(p.field, p.field), p.data, p.file_name) for p in gated_parts(lora, alora, "mood")]
    assert (await world.upload(parts)).status == 201


def change(parts: dict[str, Part], field: str, data: bytes) -> None:
    parts[field] = Part(field, data, "file")


def no_weights(_: Path, parts: dict[str, Part]) -> None:
    del parts["gate_weights"]


def no_config(_: Path, parts: dict[str, Part]) -> None:
    del parts["gate_config"]


def pickle(_: Path, parts: dict[str, Part]) -> None:
    change(parts, "gate_weights", b"\x80\x04\x95" + b"x" * 64)


def not_a_number(alora: Path, parts: dict[str, Part]) -> None:
    values = load_file(alora / "adapter_model.safetensors")
    change(parts, "gate_weights", save({key: value * np.float32(np.nan) for key, value in values.items()}))


def invocation_outside_the_generation_prompt(alora: Path, parts: dict[str, Part]) -> None:
    config = json.loads((alora / "adapter_config.json").read_text())
    change(parts, "gate_config", json.dumps({**config, "alora_invocation_tokens": [7, 8, 9]}).encode())


def a_plain_lora_as_gate(alora: Path, parts: dict[str, Part]) -> None:
    config = json.loads((alora / "adapter_config.json").read_text())
    change(parts, "gate_config", json.dumps({**config, "alora_invocation_tokens": None}).encode())


def no_indicators(_: Path, parts: dict[str, Part]) -> None:
    parts["manifest"] = Part("manifest", b"{}")


def gate_of_an_activated_expert(alora: Path, parts: dict[str, Part]) -> None:
    for field, file in (("adapter_config", "adapter_config.json"), ("adapter_model", "adapter_model.safetensors")):
        change(parts, field, (alora / file).read_bytes())


@pytest.mark.parametrize(
    ("spoil", "param"),
    [
        (no_weights, WEIGHTS),
        (no_config, CONFIG),
        (pickle, WEIGHTS),
        (not_a_number, WEIGHTS),
        (invocation_outside_the_generation_prompt, "gate/alora_invocation_tokens"),
        (a_plain_lora_as_gate, "gate/alora_invocation_tokens"),
        (no_indicators, "indicators"),
        (gate_of_an_activated_expert, "gate"),
    ],
)
async def test_a_bad_gate_is_refused_and_changes_nothing(
    world: App, lora: Path, alora: Path, spoil: Callable[[Path, dict[str, Part]], None], param: str
) -> None:
    parts = {part.field: part for part in gated_parts(lora, alora, "mood")}
    spoil(alora, parts)
    reply = await world.upload(list(parts.values()))
    error = reply.json()["error"]
    assert (reply.status, error["param"]) == (422, param), error
    assert world.store.catalog.generation == 0
    assert list((world.settings.store / "staging").iterdir()) == []


@pytest.mark.parametrize("effect", [0.0, math.nan])
async def test_a_gate_without_effect_is_refused(world: App, lora: Path, alora: Path, effect: float) -> None:
    world.engine.effect_by_kind["alora"] = effect
    error = (await world.upload(gated_parts(lora, alora, "mood"))).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_adapter", WEIGHTS)
    assert world.store.catalog.generation == 0


async def test_a_gate_larger_than_the_host_cache_is_refused(
    start: Start, base_folder: Path, lora: Path, chat: Any, tmp_path: Path
) -> None:
    large = tiny.write_adapter(
        tmp_path / "large", base_folder, kind="alora", rank=128, invocation=chat.generation_prompt
    )
    async with start(expert_memory=1 << 20, max_rank=128, chain_window=1, plain_window=1) as world:
        error = (await world.upload(gated_parts(lora, large, "mood"))).json()["error"]
        assert (error["code"], error["param"]) == ("expert_too_large", WEIGHTS)
        assert world.store.catalog.generation == 0


async def test_a_config_of_absurd_size_is_413(world: App, lora: Path, alora: Path) -> None:
    parts = [p for p in gated_parts(lora, alora, "mood") if p.field != "gate_config"]
    reply = await world.upload([Part("gate_config", b" " * (2 << 20)), *parts], chunk_bytes=1 << 16)
    assert (reply.status, reply.json()["error"]["param"]) == (413, "gate_config")


async def test_the_manifest_on_disk_holds_the_gate(world: App, lora: Path, alora: Path) -> None:
    await world.upload(gated_parts(lora, alora, None, manifest=json.dumps({**MANIFEST, "name": "mood"})))
    version = world.store.catalog.resolve("mood")
    assert version.manifest.gate is not None
    assert (version.folder / "gate" / "adapter_model.safetensors").is_file()
