"""A version with a gate: what is checked, published, verified, and how it looks to whoever asks it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from expert_store import (
    GATE_FILES,
    ExpertStore,
    InvalidAdapter,
    InvalidManifest,
    ManifestDraft,
    copy_adapter,
    inspect_adapter,
    parse_manifest,
)

from .samples import BASE, CHOOSY, GATED, INFO, adapter_tensors, publish, write_adapter

INVOCATION = [5, 6]


def write_gated(folder: Path) -> Path:
    write_adapter(folder)
    write_adapter(folder / "gate", tensors=adapter_tensors(rank=1), r=1, alora_invocation_tokens=INVOCATION)
    return folder


# What is checked


def test_a_good_gate_is_described_beside_its_expert(tmp_path: Path) -> None:
    info = inspect_adapter(write_gated(tmp_path / "a"), BASE, max_rank=2)
    assert (info.kind, info.rank, info.invocation_tokens) == ("lora", 2, None)
    assert info.gate is not None
    assert (info.gate.kind, info.gate.rank, info.gate.invocation_tokens) == ("alora", 1, (5, 6))
    assert info.gate.checks == info.checks


def no_weights(folder: Path) -> None:
    (folder / "gate/adapter_model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "gate/adapter_config.json").unlink()


def not_a_number(folder: Path) -> None:
    spoilt = {key: value * np.nan for key, value in adapter_tensors(rank=1).items()}
    write_adapter(folder / "gate", tensors=spoilt, r=1, alora_invocation_tokens=INVOCATION)


def of_no_effect(folder: Path) -> None:
    zeros = {key: np.zeros_like(value) for key, value in adapter_tensors(rank=1).items()}
    write_adapter(folder / "gate", tensors=zeros, r=1, alora_invocation_tokens=INVOCATION)


def of_another_base(folder: Path) -> None:
    wide = {k: np.concatenate([v, v], axis=1) if "lora_A" in k else v for k, v in adapter_tensors(rank=1).items()}
    write_adapter(folder / "gate", tensors=wide, r=1, alora_invocation_tokens=INVOCATION)


def over_the_rank_cap(folder: Path) -> None:
    write_adapter(folder / "gate", tensors=adapter_tensors(rank=3), r=3, alora_invocation_tokens=INVOCATION)


def plain(folder: Path) -> None:
    write_adapter(folder / "gate", tensors=adapter_tensors(rank=1), r=1)


def a_pickle_beside(folder: Path) -> None:
    (folder / "gate/adapter_model.bin").touch()


def a_pickle_under_the_right_name(folder: Path) -> None:
    (folder / "gate/adapter_model.safetensors").write_bytes(b"\x80\x04\x95" + b"x" * 64)


def a_link(folder: Path) -> None:
    (folder / "gate").rename(folder.parent / "elsewhere")
    (folder / "gate").symlink_to(folder.parent / "elsewhere")


def a_gate_of_an_activated_expert(folder: Path) -> None:
    write_adapter(folder, alora_invocation_tokens=INVOCATION)


WEIGHTS, CONFIG = "gate/adapter_model.safetensors", "gate/adapter_config.json"


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (no_weights, WEIGHTS),
        (no_config, CONFIG),
        (not_a_number, WEIGHTS),
        (of_no_effect, WEIGHTS),
        (of_another_base, WEIGHTS),
        (over_the_rank_cap, "gate/r"),
        (plain, "gate/alora_invocation_tokens"),
        (a_pickle_beside, "gate/adapter_model.bin"),
        (a_pickle_under_the_right_name, WEIGHTS),
        (a_link, "gate"),
        (a_gate_of_an_activated_expert, "gate"),
    ],
)
def test_a_bad_gate_is_refused_by_its_own_file_or_key(
    tmp_path: Path, spoil: Callable[[Path], None], field: str
) -> None:
    folder = write_gated(tmp_path / "a")
    spoil(folder)
    with pytest.raises(InvalidAdapter) as refusal:
        inspect_adapter(folder, BASE, max_rank=2)
    assert refusal.value.field == field
    assert "gate" in refusal.value.message


def test_a_gate_is_copied_with_its_expert_and_nothing_else(tmp_path: Path) -> None:
    source, target = write_gated(tmp_path / "a"), tmp_path / "b"
    (source / "gate/notes.txt").touch()
    target.mkdir()
    copy_adapter(source, target)
    copied = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert copied == ["adapter_config.json", "adapter_model.safetensors", CONFIG, WEIGHTS]


# What is published


def test_a_gate_needs_the_texts_it_was_trained_with(store: ExpertStore) -> None:
    with pytest.raises(InvalidManifest) as refusal:
        publish(store, "sql", draft=ManifestDraft(), info=GATED)
    assert refusal.value.field == "indicators"
    assert store.catalog.generation == 0


def test_what_is_staged_and_what_was_inspected_must_agree(store: ExpertStore) -> None:
    with store.stage() as staged:
        write_gated(staged.folder)
        with pytest.raises(InvalidAdapter, match=r"gate/adapter_config\.json does not belong"):
            store.publish(staged, CHOOSY, INFO, name="sql")
    with store.stage() as staged:
        write_adapter(staged.folder)
        with pytest.raises(InvalidAdapter, match=r"gate/adapter_config\.json is missing"):
            store.publish(staged, CHOOSY, GATED, name="sql")
    with store.stage() as staged:
        write_gated(staged.folder)
        (staged.folder / "gate/notes.txt").touch()
        with pytest.raises(InvalidAdapter, match=r"gate/notes.txt does not belong"):
            store.publish(staged, CHOOSY, GATED, name="sql")


def test_a_gated_version_is_asked_as_its_gate_and_answers_as_itself(store: ExpertStore) -> None:
    version = publish(store, "sql", draft=ManifestDraft(indicators=CHOOSY.indicators, threshold=0.8), info=GATED)
    assert (version.kind, version.rank, version.invocation_tokens) == ("lora", 2, None)
    assert (version.self_selecting, version.answers_after_accept) == (True, False)
    gate = version.gate
    assert gate is not None
    assert version.asked_as is gate is version.gate, "made once"
    assert (gate.ref, gate.kind, gate.rank, gate.invocation_tokens) == ("sql@1", "alora", 1, (5, 6))
    assert (gate.manifest.indicators, gate.manifest.threshold) == (CHOOSY.indicators, 0.8)
    assert gate.folder == version.folder / "gate"
    assert gate.digest != version.digest
    assert (gate.weight_bytes, version.weight_bytes) == (len(b"gate weights"), len(b"weights"))
    assert (gate.gate, gate.asked_as) == (None, gate)
    assert store.catalog.chain_experts == (version,)


def test_one_without_a_gate_is_asked_as_itself(store: ExpertStore) -> None:
    version = publish(store, "sql")
    assert (version.gate, version.asked_as, version.answers_after_accept) == (None, version, True)


def test_gates_of_two_versions_are_never_confused(store: ExpertStore) -> None:
    versions = [publish(store, "sql", info=GATED) for _ in range(2)]
    digests = {v.digest for v in versions} | {v.asked_as.digest for v in versions}
    assert len(digests) == 4


def test_a_manifest_from_before_gates_is_still_read(store: ExpertStore) -> None:
    values = json.loads((publish(store, "sql").folder / "manifest.json").read_bytes())
    del values["gate"]
    assert parse_manifest(json.dumps(values).encode()).gate is None


@pytest.mark.parametrize("change", [{"indicators": None}, {"kind": "alora", "invocation_tokens": [1]}])
def test_a_manifest_whose_gate_has_nothing_to_do_is_refused(store: ExpertStore, change: dict[str, object]) -> None:
    values = json.loads((publish(store, "sql", info=GATED).folder / "manifest.json").read_bytes())
    with pytest.raises(InvalidManifest, match="a gate needs"):
        parse_manifest(json.dumps(values | change).encode())


# What is verified


@pytest.fixture
def folder(store: ExpertStore) -> Path:
    return publish(store, "sql", info=GATED).folder


def problems(store: ExpertStore) -> list[tuple[str, str]]:
    found = store.verify()
    assert {problem.ref for problem in found} <= {"sql@1"}
    return [(problem.path.parent.name + "/" + problem.path.name, problem.message) for problem in found]


def test_a_sound_gate_has_no_problems_and_outlives_a_restart(store: ExpertStore, folder: Path) -> None:
    assert store.verify() == []
    again = ExpertStore.open(store.root).catalog.resolve("sql")
    assert again.gate is not None
    assert again.gate.folder == folder / "gate"


@pytest.mark.parametrize("name", GATE_FILES)
def test_a_changed_or_missing_file_of_a_gate_is_found(store: ExpertStore, folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    assert problems(store) == [(name, "does not have the published sha256")]
    (folder / name).unlink()
    assert problems(store) == [(name, "is missing")]


def test_what_was_added_to_a_gate_is_found(store: ExpertStore, folder: Path) -> None:
    (folder / "gate/extra").touch()
    assert problems(store) == [("gate/extra", "was not published")]


def test_a_linked_gate_is_found(store: ExpertStore, folder: Path, tmp_path: Path) -> None:
    (folder / "gate").rename(tmp_path / "elsewhere")
    (folder / "gate").symlink_to(tmp_path / "elsewhere")
    assert ("1/gate", "was not published") in problems(store)
