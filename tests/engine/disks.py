"""A disk that reads when it is told to, for tests of the host cache and the expert pool."""

import mmap
import threading
import time

from expert_store import ExpertVersion
from server.engine.host_cache import HostCache
from server.model.adapter_weights import AdapterWeights, Layout


class GatedDisk:
    """Reads are held at a gate until `let` opens it for that expert; `broken` ones fail. Counts reads by name."""

    def __init__(self, *, gated: tuple[str, ...] = (), broken: tuple[str, ...] = ()) -> None:
        self.reads: list[str] = []
        self.broken = set(broken)
        self._gates = {name: threading.Event() for name in gated}
        self._ended = threading.Condition()
        self._num_ended = 0
        self._num_held = 0

    def read(self, expert: ExpertVersion) -> AdapterWeights:
        self.reads.append(expert.name)
        if expert.name in self._gates:
            self._num_held += 1
            assert self._gates[expert.name].wait(20), "nobody opened the gate"
        if expert.name in self.broken:
            raise OSError(f"{expert.name} cannot be read")
        return AdapterWeights(mmap.mmap(-1, 1), Layout(()))

    def hold(self, name: str) -> None:
        self._gates[name] = threading.Event()

    def let(self, name: str) -> None:
        self._num_held -= 1
        self._gates[name].set()

    def ended(self) -> None:
        """What the cache calls when a read has ended."""
        with self._ended:
            self._num_ended += 1
            self._ended.notify_all()

    def wait(self, count: int) -> None:
        """Until that many reads have ended in all."""
        with self._ended:
            assert self._ended.wait_for(lambda: self._num_ended >= count, timeout=20)

    def quiet(self, cache: HostCache) -> None:
        """Waits until only reads at a gate are under way."""
        while sum(not entry.reading.done() for entry in cache._entries.values()) > self._num_held:
            time.sleep(0.001)

    def cache(self, budget_bytes: int) -> HostCache:
        return HostCache(budget_bytes, on_ready=self.ended, read=self.read)
