"""Trained routers in a store: immutable versions, and one small file that says which is in use. Knows no gates.

<root>/routers/learned/current.json      the only file that is replaced: the version in use, and the next one's number
<root>/routers/learned/<version>/        manifest.json, router.safetensors; immutable once current.json names it

A router is trained over exact versions of experts, on one base; whether those are still what the pool has is for
whoever decides with it to check.
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from expert_store.disk import Disk, digest_bytes, file_sha256, is_plain_file
from expert_store.errors import CorruptStore
from expert_store.layout import MANIFEST_FILE, Layout
from expert_store.manifest import Digest, FileRecord, Fingerprint, Name, Quality, Training, invalid_manifest

ROUTER_FILE = "router.safetensors"
MAX_ROUTER_EXPERTS = 256
Gates = Literal["sigmoid", "softmax"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class RoutedExpert(_Model):
    """An expert as the router was trained over it; `digest` is that of its manifest."""

    name: Name
    version: PositiveInt
    digest: Digest


class RouterDraft(_Model):
    """What the recipe says of a router. Its weights are [layers, experts, width], the experts in this order."""

    base_fingerprint: Fingerprint
    gates: Gates
    experts: Annotated[tuple[RoutedExpert, ...], Field(min_length=1, max_length=MAX_ROUTER_EXPERTS)]
    num_layers: PositiveInt
    width: PositiveInt
    training: Training | None = None
    quality: Quality = {}


class RouterManifest(RouterDraft):
    """Everything known of a published router."""

    format: Literal[1] = 1
    version: PositiveInt
    files: dict[str, FileRecord]
    created_at: AwareDatetime


def parse_router_draft(data: bytes) -> RouterDraft:
    """Reads the manifest.json that `relay train router` wrote. Raises InvalidManifest naming the field."""
    try:
        return RouterDraft.model_validate_json(data)
    except ValidationError as error:
        raise invalid_manifest(error, RouterDraft) from None


class _Current(_Model):
    version: PositiveInt
    digest: Digest
    next_version: PositiveInt


@dataclass(frozen=True)
class RouterVersion:
    """A published router; two are equal iff their digests are."""

    manifest: RouterManifest = field(compare=False)
    digest: str
    folder: Path = field(compare=False)

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def weights_path(self) -> Path:
        return self.folder / ROUTER_FILE


def publish_router(layout: Layout, disk: Disk, staging: Path, draft: RouterDraft) -> RouterVersion:
    """Makes the staged router.safetensors the version in use. Call under the write lock.

    A crash at any point leaves the version before in use, or this one, whole.
    """
    current = _read_current(layout)
    number = 1 if current is None else current.next_version
    weights = staging / ROUTER_FILE
    manifest = RouterManifest(
        **dict(draft),
        version=number,
        files={ROUTER_FILE: FileRecord(sha256=file_sha256(weights), size_bytes=weights.stat().st_size)},
        created_at=datetime.now(UTC),
    )
    data = _canonical(manifest)
    disk.sync_file(weights)
    disk.write_file(staging / MANIFEST_FILE, data)
    disk.sync_file(staging / MANIFEST_FILE)
    disk.sync_folder(staging)
    folder = layout.router_folder(number)
    for parent in (layout.routers.parent, layout.routers):
        disk.make_folder(parent)
        layout.check_own(parent)
        disk.sync_folder(parent.parent)
    disk.remove(folder)  # a publication that crashed before current.json named it left it
    disk.rename(staging, folder)
    disk.sync_folder(layout.routers)
    _write_current(layout, disk, _Current(version=number, digest=digest_bytes(data), next_version=number + 1))
    return RouterVersion(manifest, digest_bytes(data), folder)


def read_router(layout: Layout) -> RouterVersion | None:
    """The version in use, its files held against their digests; None before the first. Raises CorruptStore."""
    current = _read_current(layout)
    if current is None:
        return None
    folder = layout.router_folder(current.version)
    layout.check_own(folder)
    data = _read(folder / MANIFEST_FILE)
    if digest_bytes(data) != current.digest:
        raise CorruptStore(folder / MANIFEST_FILE, f"does not have the published digest {current.digest}: {_RESTORE}")
    try:
        manifest = RouterManifest.model_validate_json(data)
    except ValidationError as error:
        raise CorruptStore(folder / MANIFEST_FILE, f"cannot be read by this version of the software: {error}") from None
    for name, record in manifest.files.items():
        if not is_plain_file(folder / name) or file_sha256(folder / name) != record.sha256:
            raise CorruptStore(folder / name, f"is not the published file: {_RESTORE}")
    return RouterVersion(manifest, current.digest, folder)


def router_mark(layout: Layout) -> tuple[int, ...] | None:
    """Changes whenever another version comes into use; None before the first. One look at one file's metadata."""
    try:
        seen = layout.current_router.stat()
    except FileNotFoundError:
        return None
    return seen.st_ino, seen.st_mtime_ns, seen.st_size


_RESTORE = "restore it from a backup, or train the router anew with `relay train router`"


def _read_current(layout: Layout) -> _Current | None:
    if not layout.current_router.exists():
        return None
    try:
        return _Current.model_validate_json(_read(layout.current_router))
    except ValidationError as error:
        raise CorruptStore(layout.current_router, f"cannot be read: {error}: {_RESTORE}") from None


def _write_current(layout: Layout, disk: Disk, current: _Current) -> None:
    fresh = layout.current_router.with_suffix(".json.new")
    disk.write_file(fresh, _canonical(current))
    disk.sync_file(fresh)
    disk.replace(fresh, layout.current_router)
    disk.sync_folder(layout.routers)


def _read(path: Path) -> bytes:
    if not is_plain_file(path):
        raise CorruptStore(path, f"is missing or a link: {_RESTORE}")
    return path.read_bytes()


def _canonical(model: BaseModel) -> bytes:
    return json.dumps(model.model_dump(mode="json"), indent=2, sort_keys=True).encode() + b"\n"
