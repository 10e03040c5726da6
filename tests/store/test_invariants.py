"""Random changes, against a model of a few dicts."""

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from expert_store import (
    ExpertStore,
    InvalidChain,
    InvalidFallback,
    ManifestDraft,
    StoreError,
    UnknownExpert,
    VersionInUse,
)

from .disks import HastyDisk
from .samples import CHOOSY, publish

NAMES = st.sampled_from(["sql", "dates", "mood"])
ALIASES = st.sampled_from(["live", "canary"])
VERSIONS = st.integers(1, 6)


class StoreMachine(RuleBasedStateMachine):
    """`versions` maps (name, number) to whether it is self-selecting; `aliases` maps (name, alias) to a number."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="store-"))
        self.store = ExpertStore.open(self.root, disk=HastyDisk())
        self.versions: dict[tuple[str, int], bool] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        self.given: dict[str, int] = {}
        self.generation = 0
        self.fallback: str | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(name=NAMES, choosy=st.booleans(), activate=st.booleans())
    def publish(self, name: str, choosy: bool, activate: bool) -> None:
        chain = self.store.catalog.chain
        new = not any(other == name for other, _ in self.versions)
        version = publish(self.store, name, draft=CHOOSY if choosy else ManifestDraft(), activate=activate)
        assert version.version == self.given.get(name, 0) + 1
        self.given[name] = version.version
        self.versions[name, version.version] = choosy
        if activate:
            self.aliases[name, "live"] = version.version
        if new and choosy:
            assert self.store.catalog.chain == (name, *chain)
        if name in chain:
            assert self.store.catalog.chain == chain
        self.generation += 1

    @rule(name=NAMES, alias=ALIASES, version=VERSIONS)
    def set_alias(self, name: str, alias: str, version: int) -> None:
        if (name, version) in self.versions:
            self.store.set_alias(name, alias, version)
            self.aliases[name, alias] = version
            self.generation += 1
        else:
            with pytest.raises(StoreError):
                self.store.set_alias(name, alias, version)

    @rule(name=NAMES, alias=ALIASES)
    def remove_alias(self, name: str, alias: str) -> None:
        if (name, alias) in self.aliases:
            chain = self.store.catalog.chain
            self.store.remove_alias(name, alias)
            del self.aliases[name, alias]
            assert self.store.catalog.chain == chain
            self.generation += 1
        else:
            with pytest.raises(StoreError):
                self.store.remove_alias(name, alias)

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), keep_files=st.booleans())
    def delete(self, data: st.DataObject, keep_files: bool) -> None:
        name, version = data.draw(st.sampled_from(sorted(self.versions)))
        expert_version = self.store.catalog.resolve(f"{name}@{version}")
        if any(n == name and v == version for (n, _), v in self.aliases.items()):
            with pytest.raises(VersionInUse):
                self.store.delete_version(name, version)
            return
        self.store.delete_version(name, version, keep_files=keep_files)
        assert expert_version.folder.exists() == keep_files
        if keep_files:
            self.store.discard_files(expert_version)
        assert not expert_version.folder.exists()
        del self.versions[name, version]
        if name == self.fallback and not any(other == name for other, _ in self.versions):
            self.fallback = None
        self.generation += 1

    @rule(order=st.permutations(["sql", "dates", "mood"]), length=st.integers(0, 3))
    def set_chain(self, order: list[str], length: int) -> None:
        order = order[:length]
        refused = self._refusal_of(order)
        if refused is None:
            self.store.set_chain(order, expected_generation=self.generation)
            assert list(self.store.catalog.chain) == order
            self.generation += 1
        else:
            with pytest.raises(refused):
                self.store.set_chain(order, expected_generation=self.generation)

    def _refusal_of(self, order: list[str]) -> type[StoreError] | None:
        for name in order:
            choosy = [self_selecting for (other, _), self_selecting in self.versions.items() if other == name]
            if not choosy:
                return UnknownExpert
            if name not in self.store.catalog.chain and not any(choosy):
                return InvalidChain
        return None

    @rule(name=st.one_of(st.none(), NAMES, st.just("sql@1")))
    def set_fallback(self, name: str | None) -> None:
        if name is None or (name, "live") in self.aliases:
            self.store.set_fallback(name)
            self.fallback = name
            self.generation += 1
        else:
            known = any(other == name for other, _ in self.versions) or "@" in name
            with pytest.raises(InvalidFallback if known else UnknownExpert):
                self.store.set_fallback(name)

    @rule()
    def reopen(self) -> None:
        before = self.store.catalog
        self.store = ExpertStore.open(self.root, disk=HastyDisk())
        assert self.store.catalog == before

    @invariant()
    def the_catalog_is_the_model(self) -> None:
        catalog = self.store.catalog
        assert catalog.generation == self.generation
        assert {(name, v) for name, e in catalog.experts.items() for v in e.versions} == set(self.versions)
        assert {(n, a): v for n, e in catalog.experts.items() for a, v in e.aliases.items()} == self.aliases

    @invariant()
    def the_chain_asks_only_who_can_answer(self) -> None:
        catalog = self.store.catalog
        assert len(set(catalog.chain)) == len(catalog.chain)
        assert set(catalog.chain) <= set(catalog.experts)
        expected = [
            f"{name}@{self.aliases[name, 'live']}"
            for name in catalog.chain
            if (name, "live") in self.aliases and self.versions[name, self.aliases[name, "live"]]
        ]
        assert [version.ref for version in catalog.chain_experts] == expected

    @invariant()
    def whoever_falls_back_is_live(self) -> None:
        catalog = self.store.catalog
        assert catalog.fallback == self.fallback
        live = None if self.fallback is None else self.aliases.get((self.fallback, "live"))
        expert = catalog.fallback_expert
        assert (expert and expert.ref) == (None if live is None else f"{self.fallback}@{live}")

    @invariant()
    def the_disk_holds_the_catalog_and_nothing_else(self) -> None:
        assert self.store.verify() == []
        folders = {(path.parent.name, int(path.name)) for path in (self.root / "experts").glob("*/*")}
        assert folders == set(self.versions)


StoreMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_random_changes_keep_the_store_consistent = StoreMachine.TestCase
