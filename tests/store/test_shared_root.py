"""Several stores on one root: what each sees, what opening sweeps, and what it refuses to touch."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from expert_store import CorruptStore, ExpertStore, StoreBusy
from expert_store.layout import Layout, write_lock

from .samples import publish


def test_a_change_starts_from_what_is_on_disk(store: ExpertStore) -> None:
    other = ExpertStore.open(store.root)
    publish(store, "sql")
    assert other.catalog.generation == 0
    assert publish(other, "sql").version == 2
    assert store.refresh() == other.catalog
    assert store.catalog.resolve("sql").version == 2


def test_refreshing_an_unchanged_store_keeps_the_snapshot(store: ExpertStore) -> None:
    publish(store, "sql")
    assert store.refresh() is store.catalog


def test_opening_does_not_sweep_what_a_living_process_stages(store: ExpertStore) -> None:
    with store.stage() as staged:
        ExpertStore.open(store.root)
        assert staged.folder.is_dir()


def test_a_stage_may_be_entered_and_left_in_different_threads(store: ExpertStore) -> None:
    stage = store.stage()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as another:
        staged = one.submit(stage.__enter__).result()
        ExpertStore.open(store.root)
        assert staged.folder.is_dir()
        another.submit(stage.__exit__, None, None, None).result()
    assert not list((store.root / "staging").iterdir())
    assert not list((store.root / "claims").iterdir())


def test_opening_sweeps_what_nobody_claims(store: ExpertStore) -> None:
    publish(store, "sql")
    for orphan in ("staging/abandoned", "experts/sql/2", "experts/new/1"):
        (store.root / orphan).mkdir(parents=True)
        (store.root / orphan / "manifest.json").write_text("{}")
    (store.root / "catalog.json.new").write_text("{")
    (store.root / "claims/abandoned.lock").touch()
    ExpertStore.open(store.root)
    assert sorted(path.name for path in (store.root / "experts").glob("*/*")) == ["1"]
    assert not list((store.root / "staging").iterdir())
    assert not list((store.root / "claims").iterdir())
    assert not (store.root / "catalog.json.new").exists()


def test_threads_publish_without_losing_anything(store: ExpertStore) -> None:
    threads = [threading.Thread(target=publish, args=(store, f"name{i % 2}")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: list(e.versions) for name, e in store.catalog.experts.items()} == {
        "name0": [1, 2, 3, 4],
        "name1": [1, 2, 3, 4],
    }
    assert store.catalog.generation == 8


def test_readers_are_not_disturbed_by_versions_that_come_and_go(store: ExpertStore) -> None:
    reader = ExpertStore.open(store.root)

    def come_and_go() -> None:
        for _ in range(20):
            version = publish(store, "sql", activate=False)
            store.delete_version("sql", version.version)

    with ThreadPoolExecutor(1) as writer:
        done = writer.submit(come_and_go)
        while not done.done():
            reader.refresh()
            assert reader.verify() == []
        done.result()
    assert reader.refresh().generation == 40


def test_a_store_locked_for_too_long_says_so(store: ExpertStore) -> None:
    layout = Layout(store.root)
    with write_lock(layout), pytest.raises(StoreBusy, match=r"for 0\.05 s"), write_lock(layout, timeout_seconds=0.05):
        pass


# Damage


def test_a_lost_catalog_is_not_taken_for_an_empty_store(store: ExpertStore) -> None:
    folder = publish(store, "sql").folder
    (store.root / "catalog.json").unlink()
    with pytest.raises(CorruptStore, match="restore it from a backup"):
        ExpertStore.open(store.root)
    assert folder.is_dir()


def test_a_catalog_older_than_the_experts_sweeps_nothing(store: ExpertStore) -> None:
    publish(store, "sql")
    backup = (store.root / "catalog.json").read_bytes()
    publish(store, "sql")
    folder = publish(store, "sql").folder
    (store.root / "catalog.json").write_bytes(backup)
    with pytest.raises(CorruptStore, match="is older than"):
        ExpertStore.open(store.root)
    assert folder.is_dir()


@pytest.mark.parametrize(
    "change",
    [
        {"chain": ["sql", "nobody"]},
        {"chain": ["sql", "sql"]},
        {"generation": -1},
        {"format": 2},
        {"unknown": 1},
        {"experts": {"../x": {}}},
        {"experts": {"sql": {"next_version": 1, "versions": {"1": "sha256:" + "0" * 64}}}, "chain": []},
        {"experts": {"sql": {"next_version": 2, "aliases": {"live": 1}}}, "chain": []},
    ],
    ids=str,
)
def test_a_catalog_that_contradicts_itself_is_refused(store: ExpertStore, change: dict[str, object]) -> None:
    folder = publish(store, "sql").folder
    path = store.root / "catalog.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CorruptStore):
        ExpertStore.open(store.root)
    with pytest.raises(CorruptStore):
        store.set_alias("sql", "canary", 1)
    assert folder.is_dir()


def test_a_damaged_manifest_does_not_disturb_a_running_store(store: ExpertStore) -> None:
    version = publish(store, "sql")
    (version.folder / "manifest.json").write_text("{}")
    assert publish(store, "sql").version == 2
    with pytest.raises(CorruptStore, match="published digest"):
        ExpertStore.open(store.root)


@pytest.mark.parametrize("folder", ["experts", "staging", "claims"])
def test_a_link_in_the_place_of_a_folder_is_refused(store: ExpertStore, tmp_path: Path, folder: str) -> None:
    (store.root / folder).rename(tmp_path / "elsewhere")
    (store.root / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptStore, match="link"):
        ExpertStore.open(store.root)


def test_nothing_is_published_through_a_link(store: ExpertStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (store.root / "experts" / "sql").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptStore):
        publish(store, "sql")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert "sql" not in store.catalog.experts
