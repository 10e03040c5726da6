"""Where things lie in a store, who may write, and which files outside the catalog are still wanted. Knows no adapters.

<root>/catalog.json                     the only file that is ever replaced
<root>/experts/<name>/<version>/        immutable once the catalog names them
<root>/experts/<name>/<version>/gate/   only where a plain LoRA has one
<root>/routers/learned/                 see `trained_router`
<root>/staging/<label>/                 private to the process that made it
<root>/claims/<label>.lock              held, by the kernel, as long as that process wants the folder
<root>/catalog.lock
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from expert_store.disk import is_plain_folder
from expert_store.errors import CorruptStore, StoreBusy
from expert_store.manifest import is_name

MANIFEST_FILE = "manifest.json"
LOCK_FILE = "catalog.lock"
LOCK_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 0.01
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Layout:
    """Paths below one root, which is absolute and free of links."""

    root: Path

    @property
    def catalog(self) -> Path:
        return self.root / "catalog.json"

    @property
    def new_catalog(self) -> Path:
        return self.root / "catalog.json.new"

    @property
    def experts(self) -> Path:
        return self.root / "experts"

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    @property
    def claims(self) -> Path:
        return self.root / "claims"

    @property
    def routers(self) -> Path:
        return self.root / "routers" / "learned"

    @property
    def current_router(self) -> Path:
        return self.routers / "current.json"

    def router_folder(self, version: int) -> Path:
        return self.routers / str(version)

    def version_folder(self, name: str, version: int) -> Path:
        return self.experts / name / str(version)

    def check_contained(self) -> None:
        """Raises CorruptStore when a link would lead out of the root."""
        for folder in (self.experts, self.staging, self.claims):
            self.check_own(folder)

    def check_own(self, folder: Path) -> None:
        """Raises CorruptStore unless `folder` is one, reached without links."""
        if folder.resolve() != folder or not folder.is_dir():
            raise CorruptStore(folder, "is missing or a link: restore the folder from a backup")

    def version_folders(self) -> Iterator[tuple[str, int, Path]]:
        """Every folder that lies where a version would, in the catalog or not."""
        for expert in sorted(self.experts.iterdir()):
            if not is_name(expert.name) or not is_plain_folder(expert):
                continue
            for folder in sorted(expert.iterdir()):
                if _VERSION.fullmatch(folder.name) and is_plain_folder(folder):
                    yield expert.name, int(folder.name), folder


@contextmanager
def write_lock(layout: Layout, *, timeout_seconds: float = LOCK_TIMEOUT_SECONDS) -> Iterator[None]:
    """Excludes every other writer, thread or process. Raises StoreBusy."""
    lock = FileLock(layout.root / LOCK_FILE, thread_local=False)
    try:
        lock.acquire(timeout=timeout_seconds, poll_interval=_POLL_SECONDS)
    except Timeout:
        raise StoreBusy(layout.root / LOCK_FILE, timeout_seconds) from None
    try:
        yield
    finally:
        lock.release()


class Claim:
    """Keeps a folder the catalog does not name from being swept. Dies with its process, so a crash leaves none.

    Take and release claims, and ask `is_claimed`, only under the write lock.
    """

    def __init__(self, layout: Layout, label: str) -> None:
        self._path = _claim_path(layout, label)
        self._lock = FileLock(self._path, thread_local=False)
        self._lock.acquire(blocking=False)

    def release(self) -> None:
        self._path.unlink(missing_ok=True)
        self._lock.release()


def is_claimed(layout: Layout, label: str) -> bool:
    path = _claim_path(layout, label)
    if not path.exists():
        return False
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def kept_label(name: str, version: int) -> str:
    """The claim on the files of a deleted version; `@` keeps it apart from the labels of staging."""
    return f"{name}@{version}"


def _claim_path(layout: Layout, label: str) -> Path:
    return layout.claims / f"{label}.lock"
