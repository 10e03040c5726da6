"""Which experts are on the device: slots, pins, eviction, and whose turn it is. Knows no files and no sequences.

A slot is `slot_rank` rank-1 terms in every arena; an expert takes as many adjacent slots as its rank needs. Unpinned
experts stay until their slots are needed, least recently used first; their bytes come from the host cache.

Jobs ask in order of arrival, on every turn of the engine, until they have all their experts. The first one that must
wait is *at the front*: whoever stands behind it takes nothing that it waits for, and once it lacks room nobody behind
it pins anything more, so that it gets its slots as soon as running jobs end. Waiting for a disk alone holds up nobody.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import structlog

from expert_store import ExpertVersion
from server.engine.host_cache import HostCache
from server.engine.types import PoolEvent
from server.errors import RequestTooLarge
from server.model.lora import LoraArenas
from server.model.lora_plan import Slots

log = structlog.get_logger()


class Access(Enum):
    """What a job may do with the pool. Those behind one that waits get less, so that it cannot wait for ever."""

    FULL = "evict, place and pin"
    SPARE = "the same, but nothing that those ahead wait for is evicted"
    NONE = "wait"


@dataclass
class _Resident:
    expert: ExpertVersion
    slots: Slots
    num_pins: int = 0


class ExpertPool:
    """Owned by the engine thread, as is its host cache."""

    def __init__(
        self,
        arenas: LoraArenas,
        *,
        host: HostCache,
        num_slots: int,
        slot_rank: int,
        on_event: Callable[[PoolEvent], None],
    ) -> None:
        self.host = host
        self._arenas = arenas
        self._slot_rank = slot_rank
        self._slots: list[str | None] = [None] * num_slots
        self._residents: OrderedDict[str, _Resident] = OrderedDict()  # by digest, least recently used first
        self._awaited: frozenset[str] = frozenset()  # what those wait for that have asked on this turn
        self._cramped: frozenset[str] = frozenset()  # what the one at the front wants, once it has lacked room
        self._on_event = on_event
        log.info("expert_memory", slots=num_slots, slot_bytes=arenas.slot_bytes, host_bytes=host.budget_bytes)

    @property
    def num_slots(self) -> int:
        return len(self._slots)

    @property
    def num_used(self) -> int:
        return sum(owner is not None for owner in self._slots)

    def slots_for(self, rank: int) -> int:
        return -(-rank // self._slot_rank)

    def check_fits(self, experts: Sequence[ExpertVersion]) -> None:
        """Raises RequestTooLarge or ExpertTooLarge if these experts could never be resident together."""
        needed = sum(self.slots_for(expert.rank) for expert in experts)
        if needed > self.num_slots:
            raise RequestTooLarge.slots(needed=needed, total=self.num_slots)
        for expert in experts:
            self.host.check_fits(expert)

    def try_pin(self, experts: Sequence[ExpertVersion], access: Access) -> list[Slots] | Access:
        """Slots of all these experts, pinned; or, with nothing pinned, what those behind in the line may still do.

        Raises what reading a file raised.
        """
        if access is Access.NONE:
            return Access.NONE
        wanted = frozenset(expert.digest for expert in experts)
        keep = wanted if access is Access.FULL else wanted | self._awaited
        absent, cramped = self._place(experts, keep)
        if cramped and access is Access.FULL and not self.pinned_refs():
            self._clear()  # what is wanted may itself lie across the free slots
            absent, _ = self._place(experts, keep)
        if not absent:
            if self._cramped == wanted:
                self._cramped = frozenset()
            return [self._pin(expert) for expert in experts]
        self._awaited = keep
        if access is Access.FULL and cramped:
            self._cramped = wanted
        return Access.NONE if cramped or self._cramped == wanted else Access.SPARE

    def prefetch(self, experts: Sequence[ExpertVersion], *, gently: bool = False) -> None:
        """Starts reading what is not resident, so that it is there when it is pinned."""
        keep = self._not_resident(self._awaited.union(expert.digest for expert in experts))
        for expert in experts:
            if expert.digest in keep:
                self.host.start(expert, keep=keep, gently=gently)

    def look_ahead(self, experts: Sequence[ExpertVersion]) -> None:
        """Starts reading what may be wanted, as far as there is room for it beside everything else."""
        for expert in experts:
            if expert.digest not in self._residents:
                self.host.start(expert, keep=self.host.digests)

    def adopt(self, candidate: ExpertVersion, version: ExpertVersion) -> None:
        """From now on the candidate is this version: the same bytes under another digest. Nothing pins it any more.

        A request may have brought the version in by itself, as soon as it was published; then the candidate just
        goes when its room is needed.
        """
        self.host.adopt(candidate, version)
        if version.digest in self._residents:
            return
        resident = self._residents.pop(candidate.digest, None)
        if resident is not None:
            assert resident.num_pins == 0, "a candidate was published while it was in use. This is a bug."
            self._residents[version.digest] = _Resident(version, resident.slots)
            self._slots = [version.digest if owner == candidate.digest else owner for owner in self._slots]

    def forget(self, expert: ExpertVersion) -> None:
        """Nobody will ask for this expert again: the host's copy goes now, its slots when they are needed."""
        for part in (expert, expert.gate):
            if part is not None:
                self.host.forget(part)

    def unpin(self, expert: ExpertVersion) -> None:
        resident = self._residents[expert.digest]
        assert resident.num_pins > 0, "an expert was unpinned more often than pinned. This is a bug."
        resident.num_pins -= 1

    def pinned_refs(self) -> list[str]:
        return [resident.expert.ref for resident in self._residents.values() if resident.num_pins]

    def close(self) -> None:
        self.host.close()

    def check_idle(self) -> None:
        """Asserts that nothing is pinned and the host cache keeps its budget. For tests and idle moments."""
        assert not self.pinned_refs(), "experts stay pinned without a request. This is a bug."
        self.host.check_integrity()

    def _place(self, experts: Sequence[ExpertVersion], keep: frozenset[str]) -> tuple[list[ExpertVersion], bool]:
        """Places what can be; returns those that are absent still, and whether it was room that they lacked.

        Each one placed frees its bytes in the host cache for the next, so a window may be larger than that.
        """
        while True:
            absent = [expert for expert in experts if expert.digest not in self._residents]
            ready = [expert for expert in absent if self.host.ready(expert, keep=self._not_resident(keep))]
            if not any(self._try_place(expert, keep) for expert in ready):
                return absent, bool(ready)

    def _try_place(self, expert: ExpertVersion, keep: frozenset[str]) -> bool:
        width = self.slots_for(expert.rank)
        start = self._free_run(width)
        while start is None and self._try_evict(keep):
            start = self._free_run(width)
        if start is None:
            return False
        self._fill(expert, range(start, start + width))
        return True

    def _fill(self, expert: ExpertVersion, slots: Slots) -> None:
        started = time.perf_counter()
        taken = self.host.take(expert)
        self._arenas.write(slots, taken.weights)
        self._slots[slots.start : slots.stop] = [expert.digest] * len(slots)
        self._residents[expert.digest] = _Resident(expert, slots)
        seconds = taken.read_seconds + time.perf_counter() - started
        self._on_event(PoolEvent("load", expert.ref, seconds, taken.source))

    def _free_run(self, width: int) -> int | None:
        """The first of `width` adjacent free slots."""
        run = 0
        for index, owner in enumerate(self._slots):
            run = run + 1 if owner is None else 0
            if run == width:
                return index - width + 1
        return None

    def _try_evict(self, keep: frozenset[str]) -> bool:
        """Drops the least recently used expert nobody needs."""
        for digest, resident in self._residents.items():
            if resident.num_pins == 0 and digest not in keep:
                del self._residents[digest]
                self._slots = [None if owner == digest else owner for owner in self._slots]
                self._arenas.erase(resident.slots)
                self._on_event(PoolEvent("evict", resident.expert.ref, 0.0))
                return True
        return False

    def _clear(self) -> None:
        while self._try_evict(frozenset()):
            pass

    def _pin(self, expert: ExpertVersion) -> Slots:
        resident = self._residents[expert.digest]
        resident.num_pins += 1
        self._residents.move_to_end(expert.digest)
        return resident.slots

    def _not_resident(self, digests: frozenset[str]) -> frozenset[str]:
        return digests - self._residents.keys()
