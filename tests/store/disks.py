"""Disks that fail: one dies in the middle of a call and loses what was not synced, one is full for a moment."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from expert_store.disk import LocalDisk


class HastyDisk(LocalDisk):
    """Syncs nothing: fast, and all the same to a test in which the real machine does not crash."""

    def sync_file(self, path: Path) -> None:
        assert path.is_file()

    def sync_folder(self, path: Path) -> None:
        assert path.is_dir()


class Crash(BaseException):
    """The machine stopped here. Not an Exception: nothing may handle it, as nothing runs after a crash."""


@dataclass
class _Unsynced:
    """A change of names that a power loss takes back, until `folder` is synced."""

    folder: Path
    take_back: Callable[[], object]


@dataclass
class DyingDisk(HastyDisk):
    """Counts its calls and dies in the one numbered `dies_at`: a write is cut in half, any other call does nothing.

    `lose_unsynced` then does the worst that POSIX allows: files not synced are cut, names not synced are undone.
    """

    root: Path
    dies_at: int | None = None
    calls: list[str] = field(default_factory=list)
    _synced_files: set[Path] = field(default_factory=set)
    _synced_names: set[Path] = field(default_factory=set)
    _unsynced: list[_Unsynced] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._synced_files = set(_files(self.root))
        self._synced_names = set(_files(self.root))

    @property
    def dead(self) -> bool:
        return self.dies_at is not None and len(self.calls) > self.dies_at

    def write_file(self, path: Path, data: bytes) -> None:
        self._synced_files.discard(path)
        self._live("write_file", lambda: path.write_bytes(data[: len(data) // 2]))
        super().write_file(path, data)

    def make_folder(self, path: Path) -> None:
        self._live("make_folder")
        if not path.exists():
            super().make_folder(path)
            self._unsynced.append(_Unsynced(path.parent, lambda: shutil.rmtree(path, ignore_errors=True)))

    def sync_file(self, path: Path) -> None:
        self._live("sync_file")
        super().sync_file(path)
        self._synced_files.add(path)

    def sync_folder(self, path: Path) -> None:
        self._live("sync_folder")
        super().sync_folder(path)
        self._synced_names.update(child for child in path.iterdir() if child.is_file())
        self._unsynced = [change for change in self._unsynced if change.folder != path]

    def rename(self, source: Path, target: Path) -> None:
        self._live("rename")
        super().rename(source, target)
        for synced in (self._synced_files, self._synced_names):
            synced.update([target / path.relative_to(source) for path in synced if path.is_relative_to(source)])
        self._unsynced.append(_Unsynced(target.parent, lambda: target.rename(source)))

    def replace(self, source: Path, target: Path) -> None:
        self._live("replace")
        before = target.read_bytes() if target.exists() else None
        super().replace(source, target)
        for synced in (self._synced_files, self._synced_names):
            (synced.add if source in synced else synced.discard)(target)
        self._unsynced.append(_Unsynced(target.parent, lambda: self._restore(target, before)))

    def remove(self, path: Path) -> None:
        self._live("remove")
        super().remove(path)

    def lose_unsynced(self) -> None:
        for change in reversed(self._unsynced):
            change.take_back()
        for path in _files(self.root):
            if path not in self._synced_names:
                path.unlink()
            elif path not in self._synced_files:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def _restore(self, path: Path, data: bytes | None) -> None:
        path.unlink()
        if data is not None:
            path.write_bytes(data)
            self._synced_files.add(path)
            self._synced_names.add(path)

    def _live(self, call: str, last_act: Callable[[], object] = lambda: None) -> None:
        if self.dead:
            raise Crash
        self.calls.append(call)
        if self.dead:
            last_act()
            raise Crash


@dataclass
class FullDisk(HastyDisk):
    """Raises OSError in the call numbered `fails_at`, and works again afterwards."""

    fails_at: int
    num_calls: int = 0

    def write_file(self, path: Path, data: bytes) -> None:
        self._count()
        super().write_file(path, data)

    def sync_file(self, path: Path) -> None:
        self._count()
        super().sync_file(path)

    def sync_folder(self, path: Path) -> None:
        self._count()
        super().sync_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def replace(self, source: Path, target: Path) -> None:
        self._count()
        super().replace(source, target)

    def _count(self) -> None:
        self.num_calls += 1
        if self.num_calls == self.fails_at:
            raise OSError(28, "No space left on device")


def _files(root: Path) -> list[Path]:
    """The files a crash could damage; lock files hold nothing."""
    return [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]
