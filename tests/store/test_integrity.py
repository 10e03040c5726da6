"""`verify` finds whatever is not as published, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from expert_store import ExpertStore, verify_store

from .samples import publish


@pytest.fixture
def folder(store: ExpertStore) -> Path:
    publish(store, "other")
    return publish(store, "sql").folder


def only_problem(store: ExpertStore) -> tuple[str | None, str, str]:
    problems = store.verify()
    assert verify_store(store.root) == problems
    assert len(problems) == 1, problems
    return problems[0].ref, problems[0].path.name, problems[0].message


def test_a_sound_store_has_no_problems(store: ExpertStore, folder: Path) -> None:
    assert folder.is_dir()
    assert store.verify() == []


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_flipped_byte_is_found(store: ExpertStore, folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    assert only_problem(store) == ("sql@1", name, "does not have the published sha256")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_found(store: ExpertStore, folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert only_problem(store) == ("sql@1", name, "is missing")


def test_a_cut_file_is_found(store: ExpertStore, folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"weight")
    assert only_problem(store)[2] == "has 6 bytes, 7 were published"


@pytest.mark.parametrize("name", ["adapter_model.bin", ".hidden", "gate/"])
def test_an_extra_file_is_found(store: ExpertStore, folder: Path, name: str) -> None:
    (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
    assert only_problem(store) == ("sql@1", name.rstrip("/"), "was not published")


def test_a_link_is_found_even_to_the_same_bytes(store: ExpertStore, folder: Path, tmp_path: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    shutil.move(weights, tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    assert only_problem(store) == ("sql@1", weights.name, "is a link, not the published file")


@pytest.mark.parametrize("level", ["version", "name"])
def test_a_linked_folder_is_found(store: ExpertStore, folder: Path, tmp_path: Path, level: str) -> None:
    linked = folder if level == "version" else folder.parent
    shutil.move(linked, tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    ref, _, message = only_problem(store)
    assert ref == "sql@1"
    assert "link" in message


@pytest.mark.parametrize("damage", ["byte", "missing", "link", "swapped"])
def test_a_manifest_that_is_not_the_published_one_is_found(
    store: ExpertStore, folder: Path, tmp_path: Path, damage: str
) -> None:
    path = folder / "manifest.json"
    if damage == "byte":
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {"threshold": 0.01}))
    elif damage == "swapped":
        path.write_bytes((store.root / "experts/other/1/manifest.json").read_bytes())
    else:
        shutil.move(path, tmp_path / "manifest.json")
        if damage == "link":
            path.symlink_to(tmp_path / "manifest.json")
    assert only_problem(store)[:2] == ("sql@1", "manifest.json")


def test_a_missing_version_is_found(store: ExpertStore, folder: Path) -> None:
    shutil.rmtree(folder)
    assert only_problem(store)[:2] == ("sql@1", "1")


def test_a_version_of_no_catalog_is_found(store: ExpertStore, folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("2"))
    assert only_problem(store) == (None, "2", "is in no catalog: open the store to sweep it")


@pytest.mark.parametrize("damage", ["cut", "missing", "link"])
def test_a_damaged_catalog_is_found_without_opening_the_store(
    store: ExpertStore, folder: Path, tmp_path: Path, damage: str
) -> None:
    path = store.root / "catalog.json"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        shutil.move(path, tmp_path / "catalog.json")
        if damage == "link":
            path.symlink_to(tmp_path / "catalog.json")
    assert only_problem(store)[:2] == (None, "catalog.json")
    assert folder.is_dir()


def test_every_problem_is_found_at_once(store: ExpertStore, folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    (folder / "extra").touch()
    (store.root / "experts/other/1/manifest.json").write_text("")
    assert [(problem.ref, problem.path.name) for problem in store.verify()] == [
        ("other@1", "manifest.json"),
        ("sql@1", "extra"),
        ("sql@1", "adapter_config.json"),
    ]


@pytest.mark.parametrize("lock", ["not there", "not to be opened"])
def test_without_a_lock_to_take_it_is_checked_all_the_same(store: ExpertStore, folder: Path, lock: str) -> None:
    path = store.root / "catalog.lock"
    path.unlink()
    if lock == "not to be opened":
        path.mkdir()
    shutil.copytree(folder, folder.with_name("2"))
    before, said = sorted(store.root.rglob("*")), list[str]()
    assert [problem.path.name for problem in verify_store(store.root, say=said.append)] == ["2"]
    assert sorted(store.root.rglob("*")) == before
    [line] = said
    assert line.startswith(f"{path} cannot be locked (")


def test_a_claim_that_may_not_be_opened_counts_as_held(store: ExpertStore, folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("2"))
    (store.root / "claims" / "sql@2.lock").mkdir()
    assert store.verify() == []


def test_where_the_lock_is_to_be_had_nothing_is_said(store: ExpertStore, folder: Path) -> None:
    assert folder.is_dir()
    said: list[str] = []
    assert verify_store(store.root, say=said.append) == []
    assert said == []


def test_verifying_changes_nothing(store: ExpertStore, folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("2"))
    (folder / "extra").touch()
    before = sorted(store.root.rglob("*"))
    store.verify()
    assert sorted(store.root.rglob("*")) == before
