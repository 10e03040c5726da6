"""The expert store: publishes, points, orders and deletes, each as one step that a crash cannot halve.

Knows no HTTP, no engine and no torch, and does not judge adapters: it stores what `inspect_adapter` has accepted.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from uuid import uuid4

from expert_store.adapter import AdapterInfo, complete_manifest
from expert_store.catalog import Catalog, Expert, ExpertVersion
from expert_store.centroid import CENTROID_FILE, read_centroid
from expert_store.contents import GATE_FOLDER, entries, version_files
from expert_store.disk import Disk, LocalDisk, digest_bytes, file_sha256, is_plain_file
from expert_store.errors import (
    CorruptStore,
    GenerationConflict,
    InvalidAdapter,
    InvalidChain,
    InvalidManifest,
    StoreError,
    UnknownExpert,
    shown,
)
from expert_store.integrity import (
    Problem,
    orphans,
    published_version,
    read_record,
    read_version,
    verify_store,
)
from expert_store.layout import MANIFEST_FILE, Claim, Layout, is_claimed, kept_label, write_lock
from expert_store.manifest import FileRecord, Manifest, ManifestDraft, check_alias, check_name
from expert_store.profile import PROFILE_FILE, read_profile
from expert_store.records import CatalogRecord
from expert_store.trained_router import RouterDraft, RouterVersion, publish_router, read_router, router_mark


@dataclass(frozen=True)
class Staged:
    """A private folder to write an expert's files into, on the store's own file system."""

    folder: Path
    _records: dict[str, tuple[tuple[int, int], FileRecord]] = field(default_factory=dict, repr=False)

    def record(self, file_name: str) -> FileRecord:
        """What a manifest says of one of the files, which is digested again only if it has been written again."""
        path = self.folder / file_name
        status = path.stat()
        state = status.st_size, status.st_mtime_ns
        if file_name not in self._records or self._records[file_name][0] != state:
            self._records[file_name] = state, file_record(path)
        return self._records[file_name][1]


class ExpertStore:
    """Versioned experts under one folder, shared by any number of processes.

    Readers take `catalog`, an immutable snapshot, without locks. Every change takes the store's lock, starts from the
    catalog on disk, becomes visible by one atomic replacement of catalog.json, and raises the generation by one.
    """

    def __init__(self, layout: Layout, disk: Disk, catalog: Catalog) -> None:
        self._layout = layout
        self._disk = disk
        self._catalog = catalog
        self._adopting = threading.Lock()
        self._kept: dict[str, Claim] = {}

    @classmethod
    def open(cls, root: Path | str, *, disk: Disk | None = None) -> "ExpertStore":
        """Opens the store under `root`, creating it if need be, and sweeps what a crash left behind.

        Raises CorruptStore when the catalog or a manifest is damaged; `verify_store` then says what else is.
        """
        disk = disk or LocalDisk()
        Path(root).mkdir(parents=True, exist_ok=True)
        layout = Layout(Path(root).resolve())
        with write_lock(layout):
            _create(layout, disk)
            _sweep(layout, disk, read_record(layout))
        store = cls(layout, disk, Catalog())
        store.refresh()
        return store

    @property
    def root(self) -> Path:
        return self._layout.root

    @property
    def catalog(self) -> Catalog:
        """The newest snapshot this object has seen: its own changes at once, other processes' after `refresh`."""
        return self._catalog

    def refresh(self) -> Catalog:
        """Reads the catalog from disk, without locks. Raises CorruptStore; the old snapshot then stays."""
        while True:
            record = read_record(self._layout)
            if record.generation == self._catalog.generation:
                return self._catalog
            try:
                self._adopt(self._snapshot(record))
            except CorruptStore:
                # A version deleted between the two reads looks damaged; then the catalog has moved on.
                if read_record(self._layout).generation == record.generation:
                    raise
            else:
                return self._catalog

    @contextmanager
    def stage(self) -> Iterator[Staged]:
        """Lends a private folder. What was not published by the end is removed."""
        label = uuid4().hex
        folder = self._layout.staging / label
        with write_lock(self._layout):
            claim = Claim(self._layout, label)
            self._disk.make_folder(folder)
        try:
            yield Staged(folder)
        finally:
            try:
                self._disk.remove(folder)
            finally:
                claim.release()

    def publish(
        self, staged: Staged, draft: ManifestDraft, info: AdapterInfo, *, name: str, activate: bool = True
    ) -> ExpertVersion:
        """Makes the staged adapter the next version of `name`, and with `activate` the live one.

        `name` wins over the draft's own. The first self-selecting version of a name puts it at the front of the chain.
        Raises InvalidName, InvalidManifest (trained on another base, a gate without indicators), InvalidAdapter (files
        missing or not asked for).
        """
        assert staged.folder.parent == self._layout.staging, "Staged in another store. This is a bug."
        assert staged.folder.is_dir(), "Published already, or after stage() ended. This is a bug."
        check_name(name)
        _check_base(draft, info)
        files = self._seal(staged, gated=info.gate is not None)
        with write_lock(self._layout):
            record = read_record(self._layout)
            manifest = complete_manifest(draft, info, name=name, version=record.next_version(name), files=files)
            try:
                return self._place_and_commit(staged.folder, manifest, record, activate=activate)
            except (OSError, StoreError):
                self._withdraw(manifest)
                raise

    def delete_version(self, name: str, version: int, *, keep_files: bool = False) -> Catalog:
        """Takes a version out of the catalog. Its number is never given again.

        With `keep_files` its folder stays readable for requests that began with it, until `discard_files` or the end
        of this process. Raises UnknownExpert, UnknownVersion, VersionInUse.
        """
        with write_lock(self._layout):
            following = read_record(self._layout).without_version(name, version)
            if keep_files:  # claimed before: it may fail behind the change
                self._kept[kept_label(name, version)] = Claim(self._layout, kept_label(name, version))
            try:
                catalog = self._commit(following)
            except (OSError, StoreError):
                if keep_files and read_record(self._layout).has(name, version):
                    self._kept.pop(kept_label(name, version)).release()
                raise
            if not keep_files:
                self._disk.remove(self._layout.version_folder(name, version))
        return catalog

    def discard_files(self, version: ExpertVersion) -> None:
        """Removes the files of a deleted version once nobody reads them any more; a second call does nothing."""
        with write_lock(self._layout):
            assert not read_record(self._layout).has(version.name, version.version), (
                f"{version.ref} is still in the catalog. This is a bug."
            )
            self._disk.remove(self._layout.version_folder(version.name, version.version))
            claim = self._kept.pop(kept_label(version.name, version.version), None)
            if claim is not None:
                claim.release()

    def set_alias(self, name: str, alias: str, version: int) -> Catalog:
        """Points `alias` (`live` is what a bare name means) at a version. Raises InvalidName, Unknown*."""
        check_alias(alias)
        with write_lock(self._layout):
            return self._commit(read_record(self._layout).with_alias(name, alias, version))

    def remove_alias(self, name: str, alias: str) -> Catalog:
        """Without `live` a name can only be asked for by version, and the chain passes it by. Raises Unknown*."""
        with write_lock(self._layout):
            return self._commit(read_record(self._layout).without_alias(name, alias))

    def set_chain(self, order: Sequence[str], expected_generation: int | None = None) -> Catalog:
        """Sets who is asked, and in which order; names left out are not asked.

        Raises GenerationConflict when the catalog is no longer at `expected_generation`, UnknownExpert, InvalidChain.
        """
        with write_lock(self._layout):
            record = read_record(self._layout)
            if expected_generation is not None and expected_generation != record.generation:
                self._adopt(self._snapshot(record))  # another process may have made it, and reading again must show it
                raise GenerationConflict(expected_generation, record.generation)
            _check_order(order, self._snapshot(record))
            return self._commit(record.with_chain(order))

    def set_fallback(self, name: str | None) -> Catalog:
        """Who answers, with its live version, where nobody accepts; None is the base model.

        Raises UnknownExpert, InvalidFallback.
        """
        with write_lock(self._layout):
            return self._commit(read_record(self._layout).with_fallback(name))

    def publish_router(self, staged: Staged, draft: RouterDraft) -> RouterVersion:
        """Makes the staged router.safetensors the next version of the learned router, in use from now on."""
        with write_lock(self._layout):
            return publish_router(self._layout, self._disk, staged.folder, draft)

    def read_router(self) -> RouterVersion | None:
        """The learned router in use, read from disk without locks. Raises CorruptStore."""
        return read_router(self._layout)

    def router_mark(self) -> tuple[int, ...] | None:
        """Changes whenever another learned router comes into use, whichever process published it."""
        return router_mark(self._layout)

    def verify(self) -> list[Problem]:
        """Re-digests every file of every version; an empty list means that all is as published."""
        return verify_store(self._layout.root)

    def _seal(self, staged: Staged, *, gated: bool) -> dict[str, FileRecord]:
        """Digests the staged files and makes them durable. Raises InvalidAdapter for anything but what is wanted and a
        sound profile and centroid, which may be left out."""
        folder = staged.folder
        wanted, found = version_files(gated=gated), entries(folder)
        for file_name in sorted((found - {PROFILE_FILE, CENTROID_FILE}).symmetric_difference(wanted)):
            state = "is missing" if file_name in wanted else "does not belong in a version"
            raise InvalidAdapter(file_name, f"{file_name} {state}: stage exactly {' and '.join(wanted)}")
        for file_name in sorted(found):
            if not is_plain_file(folder / file_name):
                raise InvalidAdapter(file_name, f"{file_name} is a link or a folder: stage the file itself")
            self._disk.sync_file(folder / file_name)
        if gated:
            self._disk.sync_folder(folder / GATE_FOLDER)
        if PROFILE_FILE in found:
            read_profile(folder / PROFILE_FILE)
        if CENTROID_FILE in found:
            read_centroid(folder / CENTROID_FILE)
        return {name: staged.record(name) for name in sorted(found)}

    def _place_and_commit(
        self, staging: Path, manifest: Manifest, record: CatalogRecord, *, activate: bool
    ) -> ExpertVersion:
        version = self._place(staging, manifest)
        following = record.with_version(
            version.name, version.digest, activate=activate, self_selecting=version.self_selecting
        )
        self._commit(following, added=version)
        return version

    def _place(self, staging: Path, manifest: Manifest) -> ExpertVersion:
        """Moves a sealed folder to its final place, where the catalog does not name it yet."""
        data = manifest.to_bytes()
        self._disk.write_file(staging / MANIFEST_FILE, data)
        self._disk.sync_file(staging / MANIFEST_FILE)
        self._disk.sync_folder(staging)
        folder = self._layout.version_folder(manifest.name, manifest.version)
        self._disk.make_folder(folder.parent)
        self._layout.check_own(folder.parent)
        self._disk.sync_folder(self._layout.experts)
        self._disk.remove(folder)  # a publication that crashed before its commit left it
        self._disk.rename(staging, folder)
        self._disk.sync_folder(folder.parent)
        return published_version(manifest, digest_bytes(data), folder)

    def _withdraw(self, manifest: Manifest) -> None:
        """After a failed publication: removes its folder, unless the failure came after the commit."""
        if not read_record(self._layout).has(manifest.name, manifest.version):
            self._disk.remove(self._layout.version_folder(manifest.name, manifest.version))

    def _commit(self, record: CatalogRecord, *, added: ExpertVersion | None = None) -> Catalog:
        """The one moment at which a change happens. Raises what the disk raised: behind the change, if it is there."""
        catalog = self._snapshot(record, added=added)
        try:
            _write_record(self._layout, self._disk, record)
        except OSError:
            if read_record(self._layout) == record:
                self._adopt(catalog)
            raise
        self._adopt(catalog)
        return catalog

    def _adopt(self, catalog: Catalog) -> None:
        """Makes `catalog` the snapshot, unless another thread has brought a newer one."""
        with self._adopting:
            if catalog.generation >= self._catalog.generation:
                self._catalog = catalog

    def _snapshot(self, record: CatalogRecord, *, added: ExpertVersion | None = None) -> Catalog:
        """Reads only the manifests not known yet. Raises CorruptStore."""
        known = {version.ref: version for version in [*_versions(self._catalog), *([added] if added else [])]}

        def version_of(name: str, version: int, digest: str) -> ExpertVersion:
            seen = known.get(f"{name}@{version}")
            return seen if seen and seen.digest == digest else read_version(self._layout, name, version, digest)

        experts = {
            name: Expert(
                name,
                MappingProxyType({v: version_of(name, v, digest) for v, digest in sorted(expert.versions.items())}),
                MappingProxyType(dict(expert.aliases)),
            )
            for name, expert in sorted(record.experts.items())
            if expert.versions
        }
        return Catalog(record.generation, MappingProxyType(experts), record.chain, record.fallback)


def _create(layout: Layout, disk: Disk) -> None:
    for folder in (layout.experts, layout.staging, layout.claims):
        disk.make_folder(folder)
    layout.check_contained()
    if layout.catalog.exists():
        return
    if any(layout.version_folders()):
        raise CorruptStore(layout.catalog, "is missing, but there are experts: restore it from a backup")
    _write_record(layout, disk, CatalogRecord())


def _sweep(layout: Layout, disk: Disk, record: CatalogRecord) -> None:
    """Removes what neither the catalog nor a living process wants. Call under the write lock."""
    for name, version, folder in layout.version_folders():
        if version > record.next_version(name):
            raise CorruptStore(
                layout.catalog, f"is older than {folder}: restore the newer one, or move that folder away"
            )
    for folder in list(orphans(layout, record)):
        disk.remove(folder)
    for folder in list(layout.staging.iterdir()):
        if not is_claimed(layout, folder.name):
            disk.remove(folder)
    for claim in list(layout.claims.iterdir()):
        if not is_claimed(layout, claim.stem):
            disk.remove(claim)
    disk.remove(layout.new_catalog)


def _write_record(layout: Layout, disk: Disk, record: CatalogRecord) -> None:
    disk.write_file(layout.new_catalog, record.to_bytes())
    disk.sync_file(layout.new_catalog)
    disk.replace(layout.new_catalog, layout.catalog)
    disk.sync_folder(layout.root)


def _versions(catalog: Catalog) -> Iterator[ExpertVersion]:
    return (version for expert in catalog.experts.values() for version in expert.versions.values())


def file_record(path: Path) -> FileRecord:
    """What a manifest says of a file."""
    return FileRecord(sha256=file_sha256(path), size_bytes=path.stat().st_size)


def _check_base(draft: ManifestDraft, info: AdapterInfo) -> None:
    trained_on = draft.base_fingerprint
    if trained_on is not None and trained_on != info.base_fingerprint:
        raise InvalidManifest(
            "base_fingerprint",
            f"the expert was trained on base {trained_on}, this server runs {info.base_fingerprint}: "
            "retrain it, or start the server with that base",
        )


def _check_order(order: Sequence[str], catalog: Catalog) -> None:
    """Who stands in the chain may stay; who joins needs a version that can accept and reject."""
    for name in order:
        if name not in catalog.experts:
            raise UnknownExpert(name)
        if name not in catalog.chain and not any(v.self_selecting for v in catalog.experts[name].versions.values()):
            raise InvalidChain(
                f"expert {shown(name)} has no indicators to accept and reject with: register a version that has, "
                "or one with a gate"
            )
    if len(set(order)) != len(order):
        raise InvalidChain("the order names an expert twice: give each name once")
