"""Holds what lies on disk against what was published, byte by byte. Changes nothing and needs no opened store: also
one that may only be read."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from expert_store.catalog import ExpertVersion
from expert_store.centroid import CENTROID_FILE, Centroid, parse_centroid
from expert_store.contents import entries
from expert_store.disk import digest_bytes, file_sha256, is_plain_file
from expert_store.errors import CorruptStore, InvalidAdapter, InvalidManifest
from expert_store.layout import LOCK_FILE, MANIFEST_FILE, Layout, is_claimed, kept_label, write_lock
from expert_store.manifest import FileRecord, Manifest, parse_manifest
from expert_store.profile import PROFILE_FILE, Profile, parse_profile
from expert_store.records import CatalogRecord, parse_record
from expert_store.trained_router import read_router

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """Something on disk that is not as published. `ref` is the version it concerns, None for the store itself."""

    ref: str | None
    path: Path
    message: str


def verify_store(root: Path, *, say: Callable[[str], None] = lambda _: None) -> list[Problem]:
    """Re-digests every file of every version under `root`; works on stores too damaged to be opened.

    Versions that are deleted meanwhile are left out. `say` is told where the lock is not there or not ours to take, as
    on a copy or a read-only mount, and so was done without. Raises StoreBusy.
    """
    layout = Layout(root.resolve())
    try:
        layout.check_contained()
        record = read_record(layout)
    except CorruptStore as error:
        return [Problem(None, error.path, error.message)]
    found = [
        problem
        for name, expert in sorted(record.experts.items())
        for version, digest in sorted(expert.versions.items())
        for problem in _check_version(layout, name, version, digest)
    ]
    with _lock_if_possible(layout, say):
        current = read_record(layout)
        found += [
            Problem(None, path, "is in no catalog: open the store to sweep it") for path in orphans(layout, current)
        ]
    try:
        read_router(layout)
    except CorruptStore as error:
        found.append(Problem(None, error.path, error.message))
    still_there = {f"{name}@{version}" for name, e in current.experts.items() for version in e.versions}
    return [problem for problem in found if problem.ref is None or problem.ref in still_there]


def _lock_if_possible(layout: Layout, say: Callable[[str], None]) -> AbstractContextManager[None]:
    """The write lock, where taking it makes no file."""
    path = layout.root / LOCK_FILE
    try:
        path.open("r+b").close()
    except OSError as error:
        say(
            f"{path} cannot be locked ({error.strerror}): checked without it, so what another process is publishing "
            "just now may be shown as in no catalog"
        )
        return nullcontext()
    return write_lock(layout)


def read_record(layout: Layout) -> CatalogRecord:
    """The current catalog.json. Raises CorruptStore."""
    if not is_plain_file(layout.catalog):
        raise CorruptStore(layout.catalog, "is missing or a link: restore it from a backup")
    return parse_record(layout.catalog.read_bytes(), layout.catalog)


def read_version(layout: Layout, name: str, version: int, digest: str) -> ExpertVersion:
    """A published version, its manifest held against `digest`. Raises CorruptStore."""
    folder = layout.version_folder(name, version)
    path = folder / MANIFEST_FILE
    layout.check_own(folder)
    if not is_plain_file(path):
        raise CorruptStore(path, "is missing or a link: restore it from a backup")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptStore(path, f"cannot be read: {error}") from None
    if digest_bytes(data) != digest:
        raise CorruptStore(path, f"does not have the published digest {digest}: restore it from a backup")
    manifest = _read_manifest(data, path, f"{name}@{version}")
    return published_version(manifest, digest, folder)


def published_version(manifest: Manifest, digest: str, folder: Path) -> ExpertVersion:
    """A version and what lies beside its adapter, held against the manifest. Raises CorruptStore."""
    profile: Profile | None = _read_beside(folder / PROFILE_FILE, manifest.files, parse_profile)
    centroid: Centroid | None = _read_beside(folder / CENTROID_FILE, manifest.files, parse_centroid)
    return ExpertVersion(manifest, digest, folder, profile, centroid=centroid)


def _read_beside(path: Path, files: Mapping[str, FileRecord], parse: Callable[[bytes], T]) -> T | None:
    """None where the version was published without."""
    if path.name not in files:
        return None
    message = _compare(path, files[path.name].size_bytes, files[path.name].sha256)
    if message is not None:
        raise CorruptStore(path, f"{message}: restore it from a backup")
    try:
        return parse(path.read_bytes())
    except InvalidAdapter as error:
        raise CorruptStore(path, f"cannot be read by this version of the software: {error.message}") from None


def orphans(layout: Layout, record: CatalogRecord) -> Iterator[Path]:
    """Version folders that neither the catalog nor a living process wants. Call under the write lock."""
    for name, version, folder in layout.version_folders():
        if not record.has(name, version) and not _may_be_claimed(layout, kept_label(name, version)):
            yield folder


def _may_be_claimed(layout: Layout, label: str) -> bool:
    """A claim that cannot be opened cannot be told from one that is held."""
    try:
        return is_claimed(layout, label)
    except OSError:
        return True


def _read_manifest(data: bytes, path: Path, ref: str) -> Manifest:
    try:
        manifest = parse_manifest(data)
    except InvalidManifest as error:
        raise CorruptStore(path, f"cannot be read by this version of the software: {error.message}") from None
    if f"{manifest.name}@{manifest.version}" != ref:
        raise CorruptStore(path, f"describes {manifest.name}@{manifest.version} but lies in the place of {ref}")
    return manifest


def _check_version(layout: Layout, name: str, version: int, digest: str) -> list[Problem]:
    ref = f"{name}@{version}"
    try:
        return _check_files(read_version(layout, name, version, digest))
    except CorruptStore as error:
        return [Problem(ref, error.path, error.message)]
    except OSError as error:
        return [Problem(ref, layout.version_folder(name, version), f"cannot be read: {error}")]


def _check_files(published: ExpertVersion) -> list[Problem]:
    ref, files = published.ref, published.manifest.files
    expected = {*files, MANIFEST_FILE}
    extra = sorted(entries(published.folder) - expected)
    problems = [Problem(ref, published.folder / name, "was not published") for name in extra]
    for file_name, published_file in sorted(files.items()):
        message = _compare(published.folder / file_name, published_file.size_bytes, published_file.sha256)
        if message is not None:
            problems.append(Problem(ref, published.folder / file_name, message))
    return problems


def _compare(path: Path, size_bytes: int, sha256: str) -> str | None:
    if path.is_symlink():
        return "is a link, not the published file"
    if not is_plain_file(path):
        return "is missing"
    actual_bytes = path.stat().st_size
    if actual_bytes != size_bytes:
        return f"has {actual_bytes} bytes, {size_bytes} were published"
    return None if file_sha256(path) == sha256 else "does not have the published sha256"
