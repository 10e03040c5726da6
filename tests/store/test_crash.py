"""A crash in any call of any change leaves the old state or the new one, whole, and the next change works."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expert_store import ExpertStore, ManifestDraft
from expert_store.disk import Disk

from .disks import Crash, DyingDisk, FullDisk, HastyDisk
from .samples import CHOOSY, GATED, publish, publish_router

Change = Callable[[ExpertStore], object]
CHANGES: dict[str, Change] = {
    "publish a new name": lambda store: publish(store, "new"),
    "publish the next version": lambda store: publish(store, "sql"),
    "publish without activating": lambda store: publish(store, "dates", draft=ManifestDraft(), activate=False),
    "publish with a gate": lambda store: publish(store, "sql", info=GATED),
    "delete a version": lambda store: store.delete_version("sql", 1),
    "delete the only version": lambda store: store.delete_version("mood", 1),
    "delete but keep the files": lambda store: store.delete_version("sql", 1, keep_files=True),
    "set an alias": lambda store: store.set_alias("sql", "live", 1),
    "add an alias": lambda store: store.set_alias("sql", "canary", 1),
    "remove an alias": lambda store: store.remove_alias("sql", "live"),
    "publish a router": lambda store: publish_router(store),
    "set the chain": lambda store: store.set_chain(["sql", "dates"]),
    "set the fallback": lambda store: store.set_fallback("dates"),
    "unset the fallback": lambda store: store.set_fallback(None),
}
MAX_CALLS = 40
State = tuple[Any, ...]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two self-selecting names, one of them twice, and one name without an alias."""
    root = tmp_path_factory.mktemp("crash") / "store"
    store = ExpertStore.open(root, disk=HastyDisk())
    publish(store, "sql", draft=CHOOSY)
    publish(store, "sql", draft=CHOOSY)
    publish(store, "dates", draft=CHOOSY)
    publish(store, "mood", draft=CHOOSY, activate=False)
    publish_router(store)
    store.set_fallback("sql")
    return root


def state_of(store: ExpertStore) -> State:
    """Everything but the digests, which hold the time of publication."""
    catalog = store.catalog
    experts = {name: (tuple(e.versions), dict(e.aliases)) for name, e in catalog.experts.items()}
    router = store.read_router()
    return catalog.generation, catalog.chain, catalog.fallback, experts, router and router.version


def open_copy(before: Path, root: Path, disk: Disk) -> ExpertStore:
    shutil.copytree(before, root)
    return ExpertStore.open(root, disk=disk)


def crash(before: Path, root: Path, change: Change, dies_at: int, *, power_loss: bool) -> bool:
    """Runs `change` on a copy, on a disk that dies in its call `dies_at`. Returns whether the change was completed."""
    shutil.copytree(before, root)
    disk = DyingDisk(root)
    store = ExpertStore.open(root, disk=disk)
    disk.dies_at = len(disk.calls) + dies_at
    finished = True
    try:
        change(store)
    except Crash:
        finished = False
    if power_loss:
        disk.lose_unsynced()
    return finished and not disk.dead


def check_after_crash(root: Path, allowed: list[State]) -> State:
    store = ExpertStore.open(root, disk=HastyDisk())
    assert store.verify() == []
    assert list((root / "staging").iterdir()) == []
    state = state_of(store)
    assert state in allowed
    expected = max(store.catalog.experts["sql"].versions) + 1 if "sql" in store.catalog.experts else 1
    assert publish(store, "sql").version >= expected
    assert publish(store, "new").version in (1, 2)
    assert publish_router(store).version == state[-1] + 1
    assert store.verify() == []
    return state


@pytest.mark.parametrize("power_loss", [False, True], ids=["killed", "power loss"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_crash_in_any_call_leaves_the_old_state_or_the_new_one(
    before: Path, tmp_path: Path, name: str, power_loss: bool
) -> None:
    change = CHANGES[name]
    store = open_copy(before, tmp_path / "done", HastyDisk())
    old = state_of(store)
    change(store)
    new = state_of(store)

    seen: list[State] = []
    for dies_at in range(MAX_CALLS):
        root = tmp_path / str(dies_at)
        finished = crash(before, root, change, dies_at, power_loss=power_loss)
        seen.append(check_after_crash(root, [old, new]))
        if finished:
            break
    assert finished, "raise MAX_CALLS"
    assert seen[0] == old, "nothing may be visible before the first call"
    assert seen[-1] == new, "a change that came to its end must last"
    assert seen == sorted(seen, key=lambda state: state == new), "once visible, it stays"


def test_a_process_that_lives_on_publishes_over_what_another_left_by_crashing(before: Path, tmp_path: Path) -> None:
    survivor = open_copy(before, tmp_path / "store", HastyDisk())
    disk = DyingDisk(survivor.root)
    crashing = ExpertStore.open(survivor.root, disk=disk)
    disk.dies_at = len(disk.calls) + disk_calls_until_placed(before, tmp_path / "probe")
    with pytest.raises(Crash):
        publish(crashing, "sql", weights=b"never published")
    left = survivor.root / "experts/sql/3/adapter_model.safetensors"
    assert left.read_bytes() == b"never published"

    assert publish(survivor, "sql", weights=b"published").version == 3
    assert left.read_bytes() == b"published"
    assert survivor.verify() == []


def disk_calls_until_placed(before: Path, root: Path) -> int:
    """How many calls a publication makes up to and including the move to the final place."""
    shutil.copytree(before, root)
    disk = DyingDisk(root)
    store = ExpertStore.open(root, disk=disk)
    start = len(disk.calls)
    publish(store, "sql")
    return disk.calls.index("rename", start) + 1 - start


def test_a_crash_while_discarding_kept_files_leaves_nothing_behind(before: Path, tmp_path: Path) -> None:
    def change(store: ExpertStore) -> None:
        version = store.catalog.resolve("sql@1")
        store.delete_version("sql", 1, keep_files=True)
        store.discard_files(version)

    for dies_at in range(MAX_CALLS):
        root = tmp_path / str(dies_at)
        finished = crash(before, root, change, dies_at, power_loss=True)
        store = ExpertStore.open(root, disk=HastyDisk())
        assert store.verify() == []
        assert (root / "experts/sql/1").exists() == (1 in store.catalog.experts["sql"].versions)
        if finished:
            return
    pytest.fail("raise MAX_CALLS")


def test_a_crash_while_a_store_is_created_can_be_repeated(tmp_path: Path) -> None:
    for dies_at in range(MAX_CALLS):
        root = tmp_path / str(dies_at)
        root.mkdir()
        disk = DyingDisk(root, dies_at=dies_at)
        finished = True
        try:
            ExpertStore.open(root, disk=disk)
        except Crash:
            finished = False
        disk.lose_unsynced()
        store = ExpertStore.open(root, disk=HastyDisk())
        assert store.verify() == []
        assert publish(store, "sql").ref == "sql@1"
        if finished:
            return
    pytest.fail("raise MAX_CALLS")


@pytest.mark.parametrize("fails_at", range(1, 12))
def test_a_full_disk_refuses_the_publication_and_leaves_no_trace(before: Path, tmp_path: Path, fails_at: int) -> None:
    """Unlike a crash, the process lives on: it must clean up and know what state it is in."""
    disk = FullDisk(fails_at=10**6)
    store = open_copy(before, tmp_path / "store", disk)
    old = store.catalog
    disk.fails_at = disk.num_calls + fails_at
    with pytest.raises(OSError, match="No space left"):
        publish(store, "new")

    assert store.verify() == []
    assert list((store.root / "staging").iterdir()) == []
    committed = "new" in store.catalog.experts
    assert committed or store.catalog == old
    assert publish(store, "new").version == (2 if committed else 1)
    assert ExpertStore.open(store.root).catalog == store.catalog


@pytest.mark.parametrize("name", CHANGES)
def test_after_a_failure_in_any_call_memory_is_what_is_on_disk(before: Path, tmp_path: Path, name: str) -> None:
    """The call behind the change may fail as well, and then it has happened all the same."""
    for fails_at in range(1, MAX_CALLS):
        disk = FullDisk(fails_at=10**6)
        root = tmp_path / str(fails_at)
        store = open_copy(before, root, disk)
        disk.fails_at = disk.num_calls + fails_at
        try:
            CHANGES[name](store)
        except OSError:
            pass
        else:
            return
        kept = {path for path in (root / "experts").glob("*/*") if path.is_dir()}
        assert ExpertStore.open(root, disk=HastyDisk()).catalog == store.catalog
        if "keep" in name:
            assert kept == {path for path in (root / "experts").glob("*/*") if path.is_dir()}, "somebody may read them"
        assert publish(store, "later").ref == "later@1"
    pytest.fail("raise MAX_CALLS")


def test_the_simulated_power_loss_is_real(tmp_path: Path) -> None:
    """The tests above are worth nothing if an unsynced change survived on the dying disk."""
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "kept").write_bytes(b"old")
    disk = DyingDisk(root)
    disk.write_file(root / "never", b"1234")
    disk.write_file(root / "kept", b"1234")
    disk.write_file(root / "other", b"new")
    disk.sync_file(root / "other")
    disk.replace(root / "other", root / "kept")
    disk.rename(root / "a", root / "b")
    disk.make_folder(root / "c")
    disk.lose_unsynced()
    assert sorted(path.name for path in root.iterdir()) == ["a", "kept"]
    assert (root / "kept").read_bytes() == b"1234"
