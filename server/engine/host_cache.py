"""Experts' files in host memory, within a byte budget, and the threads that read them. Knows nothing of slots or pins.

What is being read counts as if it were there already, so the budget holds at every moment. What was longest not taken
goes first; an expert stays here while it is on the device, unless its bytes are wanted.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from expert_store import ExpertVersion, StoreError
from server.background import begin_in_background
from server.engine.adapter_file import unreadable
from server.engine.types import LoadSource
from server.errors import ExpertTooLarge
from server.model.adapter_weights import AdapterWeights

_NUM_READERS = 4  # so that one file on a slow disk does not hold up the others


@dataclass(frozen=True)
class Taken:
    """An expert's bytes on their way into slots; `read_seconds` is 0 where nothing had to be read for it."""

    weights: AdapterWeights
    source: LoadSource
    read_seconds: float


@dataclass
class _Entry:
    num_bytes: int
    reading: Future[tuple[AdapterWeights, float]]
    taken: bool = False


class HostCache:
    """Owned by the engine thread. `on_ready` is called from a reading thread whenever a read has ended."""

    def __init__(
        self,
        budget_bytes: int,
        *,
        on_ready: Callable[[], None],
        read: Callable[[ExpertVersion], AdapterWeights],
    ) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # by digest, the longest not taken first
        self._on_ready = on_ready
        self._read = read
        self._readers = ThreadPoolExecutor(max_workers=_NUM_READERS, thread_name_prefix="expert-reader")

    def check_fits(self, expert: ExpertVersion) -> None:
        """Raises ExpertTooLarge if the budget could never hold this expert."""
        if expert.weight_bytes > self.budget_bytes:
            raise ExpertTooLarge(
                expert.ref, weight_bytes=expert.weight_bytes, budget_bytes=self.budget_bytes, param="expert"
            )

    @property
    def digests(self) -> frozenset[str]:
        """Of all experts that are here or being read."""
        return frozenset(self._entries)

    def start(self, expert: ExpertVersion, *, keep: Collection[str], gently: bool = False) -> None:
        """Begins to read what is not here, unless only digests of `keep` could make room for it.

        `gently` is for what nobody who is being answered waits for: it gives way to all who are.
        """
        if expert.digest not in self._entries and self._make_room(expert.weight_bytes, keep):
            begin = begin_in_background if gently else self._readers.submit
            reading = begin(partial(_timed, self._read, expert))
            reading.add_done_callback(lambda _: self._on_ready())
            self._entries[expert.digest] = _Entry(expert.weight_bytes, reading)
            self.used_bytes += expert.weight_bytes

    def ready(self, expert: ExpertVersion, *, keep: Collection[str]) -> bool:
        """Whether the expert can be taken; if not, starts reading it.

        Raises, once, CorruptStore where it could not be read; what reading raised, where it is not published yet.
        """
        self.start(expert, keep=keep)
        entry = self._entries.get(expert.digest)
        if entry is None or not entry.reading.done():
            return False
        if (error := entry.reading.exception()) is not None:
            self._drop(expert.digest)
            if expert.is_candidate and isinstance(error, StoreError | OSError):
                raise error
            raise unreadable(expert, error) from error
        return True

    def take(self, expert: ExpertVersion) -> Taken:
        """The bytes of an expert that is ready; they stay here too."""
        entry = self._entries[expert.digest]
        weights, seconds = entry.reading.result()
        taken = Taken(weights, "host", 0.0) if entry.taken else Taken(weights, "disk", seconds)
        entry.taken = True
        self._entries.move_to_end(expert.digest)
        return taken

    def adopt(self, candidate: ExpertVersion, version: ExpertVersion) -> None:
        """The bytes of the candidate, if they are here and the version's are not, are those of this version now."""
        if version.digest in self._entries:
            return
        entry = self._entries.pop(candidate.digest, None)
        if entry is not None:
            self._entries[version.digest] = entry

    def forget(self, expert: ExpertVersion) -> None:
        """Gives up the bytes of an expert that nobody will ask for again; what is still being read goes by and by."""
        entry = self._entries.get(expert.digest)
        if entry is not None and entry.reading.done():
            self._drop(expert.digest)

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)

    def check_integrity(self) -> None:
        """Asserts that the count of bytes is right and within the budget."""
        held = sum(entry.num_bytes for entry in self._entries.values())
        assert self.used_bytes == held, "the host cache has lost count of its bytes. This is a bug."
        assert held <= self.budget_bytes, "the host cache is over its budget. This is a bug."

    def _make_room(self, num_bytes: int, keep: Collection[str]) -> bool:
        """Drops what is whole and nobody keeps, until that many bytes are free."""
        spare = [digest for digest, entry in self._entries.items() if entry.reading.done() and digest not in keep]
        while self.used_bytes + num_bytes > self.budget_bytes and spare:
            self._drop(spare.pop(0))
        return self.used_bytes + num_bytes <= self.budget_bytes

    def _drop(self, digest: str) -> None:
        self.used_bytes -= self._entries.pop(digest).num_bytes


def _timed(read: Callable[[ExpertVersion], AdapterWeights], expert: ExpertVersion) -> tuple[AdapterWeights, float]:
    started = time.perf_counter()
    weights = read(expert)
    return weights, time.perf_counter() - started
