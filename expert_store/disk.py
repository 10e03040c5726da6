"""The few file-system calls that make a change durable, as one seam, and digests. Knows no experts and no catalog."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Protocol

from expert_store.breath import breathe

_PIECE_BYTES = 1 << 18


class Disk(Protocol):
    """Every call by which the store changes what is on disk goes through here, in the order it must survive a crash.

    Only what was synced survives a power loss: a file's bytes by `sync_file`, a name by `sync_folder` of its parent.
    """

    def write_file(self, path: Path, data: bytes) -> None: ...

    def make_folder(self, path: Path) -> None:
        """An existing folder is left alone; the parent must exist."""

    def sync_file(self, path: Path) -> None: ...

    def sync_folder(self, path: Path) -> None: ...

    def rename(self, source: Path, target: Path) -> None:
        """Moves a folder to a name that is free."""

    def replace(self, source: Path, target: Path) -> None:
        """Puts a file in the place of another; readers see the one or the other."""

    def remove(self, path: Path) -> None:
        """Removes a file or a whole folder, or nothing if it is not there. Links are removed, not followed."""


class LocalDisk:
    """A POSIX file system."""

    def write_file(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)

    def make_folder(self, path: Path) -> None:
        path.mkdir(exist_ok=True)

    def sync_file(self, path: Path) -> None:
        _sync(path, os.O_RDONLY | os.O_NOFOLLOW)

    def sync_folder(self, path: Path) -> None:
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def replace(self, source: Path, target: Path) -> None:
        source.replace(target)

    def remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def digest_bytes(data: bytes) -> str:
    """`sha256:...` of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """The hex digest of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            breathe()
    return digest.hexdigest()


def is_plain_file(path: Path) -> bool:
    """Whether `path` is a regular file itself, not a link to one, and no pipe or device that would block a reader."""
    return path.is_file() and not path.is_symlink()


def is_plain_folder(path: Path) -> bool:
    """Whether `path` is a folder itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
