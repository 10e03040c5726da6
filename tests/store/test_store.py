"""What each change does, and what it refuses."""

import json
from pathlib import Path

import pytest

from expert_store import (
    CorruptStore,
    ExpertStore,
    GenerationConflict,
    Indicators,
    InvalidAdapter,
    InvalidChain,
    InvalidFallback,
    InvalidManifest,
    InvalidName,
    ManifestDraft,
    Training,
    UnknownAlias,
    UnknownExpert,
    UnknownVersion,
    VersionInUse,
)
from expert_store.disk import digest_bytes

from .samples import BASE, CHOOSY, INFO, publish

PLAIN = ManifestDraft()


# Publishing


def test_a_new_store_is_empty_and_sound(store: ExpertStore) -> None:
    assert store.catalog.generation == 0
    assert list(store.catalog.chain) == []
    assert dict(store.catalog.experts) == {}
    assert store.verify() == []


def test_a_version_holds_what_was_said_and_what_was_found(store: ExpertStore) -> None:
    draft = ManifestDraft(
        name="other",
        base_fingerprint=BASE.fingerprint,
        description="questions to SQL",
        samples=("how many users are there?",),
        indicators=Indicators(accept="yes", reject="no"),
        threshold=0.75,
        training=Training(recipe="see", seed=1, data_digest="sha256:" + "a" * 64, rows=400, epochs=3),
        quality={"exact_match": 0.97},
    )
    version = publish(store, "sql", draft=draft)

    manifest = version.manifest
    assert (version.ref, version.kind, version.rank, version.self_selecting) == ("sql@1", "lora", 2, True)
    assert manifest.description == "questions to SQL"
    assert manifest.indicators == Indicators(accept="yes", reject="no")
    assert manifest.training == draft.training
    assert manifest.threshold == 0.75
    assert manifest.created_at.tzinfo is not None
    assert manifest.files["adapter_model.safetensors"].size_bytes == len(b"weights")
    assert version.digest == digest_bytes((version.folder / "manifest.json").read_bytes())
    assert version.folder == store.root / "experts" / "sql" / "1"


def test_versions_count_up_and_the_newest_is_live(store: ExpertStore) -> None:
    assert [publish(store, "sql").version for _ in range(3)] == [1, 2, 3]
    assert store.catalog.resolve("sql").version == 3
    assert store.catalog.generation == 3


def test_without_activation_live_stays(store: ExpertStore) -> None:
    publish(store, "sql")
    publish(store, "sql", activate=False)
    assert store.catalog.resolve("sql").version == 1
    assert store.catalog.resolve("sql@2").version == 2


def test_a_snapshot_never_changes(store: ExpertStore) -> None:
    publish(store, "sql")
    snapshot = store.catalog
    publish(store, "sql")
    store.set_alias("sql", "live", 1)
    assert snapshot.generation == 1
    assert list(snapshot.experts["sql"].versions) == [1]
    with pytest.raises(TypeError):
        snapshot.experts["sql"].aliases["live"] = 7  # type: ignore[index]


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", "a@1", ".x", "-x", "a" * 65, "a\n", "ä", "a b"])
def test_a_name_outside_the_pattern_is_refused(store: ExpertStore, name: str) -> None:
    with pytest.raises(InvalidName) as refusal:
        publish(store, name)
    assert refusal.value.field == "name"
    assert store.catalog.generation == 0
    assert not list((store.root / "experts").iterdir())


@pytest.mark.parametrize("name", ["a", "0", "a.b-c_d", "a" * 64, "7"])
def test_names_within_the_pattern_are_accepted(store: ExpertStore, name: str) -> None:
    assert publish(store, name).ref == f"{name}@1"
    assert ExpertStore.open(store.root).catalog == store.catalog


def test_an_expert_for_another_base_is_refused(store: ExpertStore) -> None:
    with pytest.raises(InvalidManifest, match="retrain it, or start the server") as refusal:
        publish(store, "sql", draft=ManifestDraft(base_fingerprint="sha256:" + "f" * 64))
    assert refusal.value.field == "base_fingerprint"
    assert store.catalog.generation == 0


def test_only_the_two_files_may_be_staged(store: ExpertStore) -> None:
    with store.stage() as staged:
        (staged.folder / "adapter_config.json").write_text("{}")
        with pytest.raises(InvalidAdapter, match="is missing") as missing:
            store.publish(staged, PLAIN, INFO, name="sql")
        (staged.folder / "adapter_model.safetensors").write_text("x")
        (staged.folder / "manifest.json").write_text("{}")
        with pytest.raises(InvalidAdapter, match="does not belong") as extra:
            store.publish(staged, PLAIN, INFO, name="sql")
    assert (missing.value.field, extra.value.field) == ("adapter_model.safetensors", "manifest.json")
    assert store.catalog.generation == 0


def test_a_staged_link_is_refused(store: ExpertStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with store.stage() as staged:
        (staged.folder / "adapter_config.json").write_text("{}")
        (staged.folder / "adapter_model.safetensors").symlink_to(tmp_path / "secret")
        with pytest.raises(InvalidAdapter, match="is a link"):
            store.publish(staged, PLAIN, INFO, name="sql")


def test_what_was_staged_and_not_published_is_removed(store: ExpertStore) -> None:
    with store.stage() as staged:
        (staged.folder / "adapter_config.json").write_text("{}")
    assert not staged.folder.exists()
    assert not list((store.root / "staging").iterdir())
    assert not list((store.root / "claims").iterdir())


def test_a_stage_that_ends_in_an_error_is_removed(store: ExpertStore) -> None:
    with pytest.raises(ZeroDivisionError), store.stage():
        _ = 1 / 0
    assert not list((store.root / "staging").iterdir())


def test_publishing_twice_from_one_stage_is_a_bug(store: ExpertStore) -> None:
    with store.stage() as staged:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (staged.folder / name).write_text("x")
        store.publish(staged, PLAIN, INFO, name="sql")
        with pytest.raises(AssertionError, match="This is a bug"):
            store.publish(staged, PLAIN, INFO, name="sql")


# Aliases


def test_aliases_move_and_versions_do_not(store: ExpertStore) -> None:
    first, second = publish(store, "sql"), publish(store, "sql")
    store.set_alias("sql", "canary", 2)
    store.set_alias("sql", "live", 1)
    assert store.catalog.resolve("sql") == first
    assert store.catalog.resolve("sql@canary") == second
    store.remove_alias("sql", "canary")
    with pytest.raises(UnknownAlias, match="canary"):
        store.catalog.resolve("sql@canary")


def test_an_alias_needs_an_expert_and_a_version(store: ExpertStore) -> None:
    with pytest.raises(UnknownExpert):
        store.set_alias("sql", "live", 1)
    publish(store, "sql")
    with pytest.raises(UnknownVersion, match="it has 1"):
        store.set_alias("sql", "live", 2)
    with pytest.raises(UnknownAlias):
        store.remove_alias("sql", "canary")
    assert store.catalog.generation == 1


@pytest.mark.parametrize("alias", ["3", "", "a/b", "Prod", "a@b"])
def test_an_alias_that_could_be_misread_is_refused(store: ExpertStore, alias: str) -> None:
    publish(store, "sql")
    with pytest.raises(InvalidName) as refusal:
        store.set_alias("sql", alias, 1)
    assert refusal.value.field == "alias"


# Deleting


def test_a_version_in_use_is_not_deleted(store: ExpertStore) -> None:
    publish(store, "sql")
    store.set_alias("sql", "canary", 1)
    with pytest.raises(VersionInUse, match="'canary', 'live'") as refusal:
        store.delete_version("sql", 1)
    assert refusal.value.aliases == ("canary", "live")
    assert store.catalog.resolve("sql@1").folder.is_dir()


def test_deleting_removes_the_files(store: ExpertStore) -> None:
    folder = publish(store, "sql").folder
    publish(store, "sql")
    store.delete_version("sql", 1)
    assert not folder.exists()
    with pytest.raises(UnknownVersion):
        store.catalog.resolve("sql@1")
    with pytest.raises(UnknownVersion):
        store.delete_version("sql", 1)


def test_numbers_are_not_given_again_even_when_all_are_gone(store: ExpertStore) -> None:
    publish(store, "sql", activate=False)
    store.delete_version("sql", 1)
    assert "sql" not in store.catalog.experts
    with pytest.raises(UnknownExpert):
        store.delete_version("sql", 1)
    assert publish(ExpertStore.open(store.root), "sql").ref == "sql@2"


def test_kept_files_stay_until_they_are_discarded(store: ExpertStore) -> None:
    version = publish(store, "sql")
    publish(store, "sql")
    store.delete_version("sql", 1, keep_files=True)
    assert (version.folder / "adapter_model.safetensors").read_bytes() == b"weights"

    ExpertStore.open(store.root)  # another process, which sweeps
    assert version.folder.is_dir()
    assert store.verify() == []

    store.discard_files(version)
    store.discard_files(version)
    assert not version.folder.exists()
    assert not list((store.root / "claims").iterdir())


def test_discarding_a_version_of_the_catalog_is_a_bug(store: ExpertStore) -> None:
    version = publish(store, "sql")
    with pytest.raises(AssertionError, match="This is a bug"):
        store.discard_files(version)


# The chain


def test_the_newest_name_is_asked_first(store: ExpertStore) -> None:
    for name in ("sql", "dates", "sql"):
        publish(store, name)
    assert list(store.catalog.chain) == ["dates", "sql"]
    assert [version.ref for version in store.catalog.chain_experts] == ["dates@1", "sql@2"]


def test_only_self_selecting_experts_join_the_chain(store: ExpertStore) -> None:
    publish(store, "sql", draft=PLAIN)
    assert list(store.catalog.chain) == []
    publish(store, "dates")
    publish(store, "sql")
    assert list(store.catalog.chain) == ["sql", "dates"]


def test_a_name_whose_live_version_cannot_choose_keeps_its_place_unasked(store: ExpertStore) -> None:
    publish(store, "sql")
    publish(store, "dates")
    publish(store, "sql", draft=PLAIN)
    store.remove_alias("dates", "live")
    assert list(store.catalog.chain) == ["dates", "sql"]
    assert store.catalog.chain_experts == ()
    store.set_alias("dates", "live", 1)
    assert [version.name for version in store.catalog.chain_experts] == ["dates"]


def test_the_order_is_set_and_survives(store: ExpertStore) -> None:
    for name in ("a", "b", "c"):
        publish(store, name)
    store.set_chain(["a", "c"])
    assert ExpertStore.open(store.root).catalog.chain == ("a", "c")


def test_a_name_taken_out_of_the_chain_stays_out(store: ExpertStore) -> None:
    publish(store, "sql")
    store.set_chain([])
    publish(store, "sql")
    assert list(store.catalog.chain) == []
    store.set_chain(["sql"])
    assert list(store.catalog.chain) == ["sql"]


def test_a_name_leaves_the_chain_with_its_last_version_and_returns_in_front(store: ExpertStore) -> None:
    publish(store, "sql", activate=False)
    publish(store, "dates")
    store.delete_version("sql", 1)
    assert list(store.catalog.chain) == ["dates"]
    publish(store, "sql")
    assert list(store.catalog.chain) == ["sql", "dates"]


def test_what_was_read_can_be_written_back(store: ExpertStore) -> None:
    publish(store, "sql")
    publish(store, "sql", draft=PLAIN)
    store.delete_version("sql", 1)
    assert store.set_chain(store.catalog.chain).chain == ("sql",)


def test_an_order_that_cannot_be_is_refused(store: ExpertStore) -> None:
    publish(store, "sql")
    publish(store, "plain", draft=PLAIN)
    with pytest.raises(UnknownExpert):
        store.set_chain(["sql", "nobody"])
    with pytest.raises(InvalidChain, match="no indicators") as refusal:
        store.set_chain(["sql", "plain"])
    with pytest.raises(InvalidChain, match="twice"):
        store.set_chain(["sql", "sql"])
    assert refusal.value.field == "order"
    assert store.catalog.generation == 2


def test_an_order_decided_on_an_old_catalog_is_refused(store: ExpertStore) -> None:
    publish(store, "sql")
    publish(store, "dates")
    with pytest.raises(GenerationConflict, match="generation 2, not 1") as refusal:
        store.set_chain(["sql"], expected_generation=1)
    assert (refusal.value.expected, refusal.value.actual) == (1, 2)
    assert store.set_chain(["sql"], expected_generation=2).generation == 3


def test_a_conflict_with_another_process_is_over_once_the_catalog_is_read_again(store: ExpertStore) -> None:
    other = ExpertStore.open(store.root)
    publish(other, "sql")
    with pytest.raises(GenerationConflict):
        store.set_chain([], expected_generation=store.catalog.generation)
    assert store.set_chain(["sql"], expected_generation=store.catalog.generation).chain == ("sql",)


def test_the_fallback_is_a_live_version_and_follows_its_alias(store: ExpertStore) -> None:
    publish(store, "sql")
    publish(store, "sql")
    assert store.catalog.fallback_expert is None
    assert store.set_fallback("sql").fallback_expert == store.catalog.resolve("sql@2")
    store.set_alias("sql", "live", 1)
    assert store.catalog.fallback_expert == store.catalog.resolve("sql@1")
    assert ExpertStore.open(store.root).catalog == store.catalog
    assert store.set_fallback(None).fallback is None


def test_without_a_live_version_the_fallback_waits_and_with_the_last_one_it_is_gone(store: ExpertStore) -> None:
    publish(store, "sql")
    store.set_fallback("sql")
    store.remove_alias("sql", "live")
    assert (store.catalog.fallback, store.catalog.fallback_expert) == ("sql", None)
    publish(store, "sql")
    assert store.catalog.fallback_expert == store.catalog.resolve("sql@2")
    store.delete_version("sql", 1)
    assert store.catalog.fallback == "sql"
    store.remove_alias("sql", "live")
    store.delete_version("sql", 2)
    assert store.catalog.fallback is None
    publish(store, "sql")
    assert store.catalog.fallback is None


def test_a_fallback_that_could_not_answer_is_refused(store: ExpertStore) -> None:
    publish(store, "draft", activate=False)
    publish(store, "sql")
    with pytest.raises(UnknownExpert):
        store.set_fallback("nobody")
    with pytest.raises(InvalidFallback, match="no live version") as refusal:
        store.set_fallback("draft")
    with pytest.raises(InvalidFallback, match="bare name"):
        store.set_fallback("sql@1")
    assert refusal.value.field == "expert"
    assert (store.catalog.generation, store.catalog.fallback) == (2, None)


def test_a_catalog_from_before_there_were_fallbacks_is_read_and_one_that_names_nobody_is_not(
    store: ExpertStore,
) -> None:
    publish(store, "sql")
    path = store.root / "catalog.json"
    record = json.loads(path.read_text())
    del record["fallback"]
    path.write_text(json.dumps(record))
    assert ExpertStore.open(store.root).catalog.fallback is None
    path.write_text(json.dumps(record | {"fallback": "nobody"}))
    with pytest.raises(CorruptStore, match="the fallback nobody has no version"):
        ExpertStore.open(store.root)


def test_the_draft_is_complete_by_default() -> None:
    assert CHOOSY.indicators == Indicators(accept="<<pos>>", reject="<<neg>>")
    assert CHOOSY.threshold == 0.5
