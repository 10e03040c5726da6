"""Reading a snapshot: what a ref means, and what is said about one that means nothing."""

import pytest

from expert_store import Catalog, ExpertStore, UnknownAlias, UnknownExpert, UnknownVersion

from .samples import publish


@pytest.fixture
def catalog(store: ExpertStore) -> Catalog:
    for _ in range(3):
        publish(store, "sql")
    store.set_alias("sql", "live", 2)
    store.set_alias("sql", "canary-2", 3)
    publish(store, "draft", activate=False)
    return store.catalog


@pytest.mark.parametrize(
    ("ref", "version"), [("sql", 2), ("sql@1", 1), ("sql@3", 3), ("sql@live", 2), ("sql@canary-2", 3)]
)
def test_a_ref_means_one_version(catalog: Catalog, ref: str, version: int) -> None:
    assert catalog.resolve(ref).ref == f"sql@{version}"


@pytest.mark.parametrize("ref", ["nobody", "", "@1", "SQL", "nobody@1", "../sql"])
def test_an_unknown_name_is_said_to_be_unknown(catalog: Catalog, ref: str) -> None:
    with pytest.raises(UnknownExpert) as refusal:
        catalog.resolve(ref)
    assert refusal.value.field == "name"


@pytest.mark.parametrize("ref", ["sql@4", "sql@0", "sql@01", "sql@" + "9" * 5000])
def test_an_unknown_version_is_told_the_known_ones(catalog: Catalog, ref: str) -> None:
    with pytest.raises(UnknownVersion, match="it has 1, 2, 3") as refusal:
        catalog.resolve(ref)
    assert len(refusal.value.message) < 200


@pytest.mark.parametrize("ref", ["sql@", "sql@nobody", "sql@-1", "sql@1@2", "sql@٣", "draft"])
def test_an_unknown_alias_is_named(catalog: Catalog, ref: str) -> None:
    with pytest.raises(UnknownAlias) as refusal:
        catalog.resolve(ref)
    assert refusal.value.alias == (ref.partition("@")[2] or ("live" if "@" not in ref else ""))


def test_versions_are_equal_iff_their_digests_are(catalog: Catalog, store: ExpertStore) -> None:
    again = ExpertStore.open(store.root).catalog
    assert again == catalog
    assert again.resolve("sql") == catalog.resolve("sql")
    assert len({catalog.resolve(ref) for ref in ("sql", "sql@2", "sql@live", "sql@1")}) == 2


def test_an_expert_without_live_has_none(catalog: Catalog) -> None:
    assert catalog.experts["draft"].live is None
    assert catalog.experts["sql"].live == catalog.resolve("sql@2")
