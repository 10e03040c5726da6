"""Which experts are on the device: loading, slots, pins, eviction. Knows files and slots; nothing of sequences.

A slot is `slot_rank` rank-1 terms in every arena; an expert takes as many adjacent slots as its rank needs. Files are
read on a thread of their own, so that a load never holds up the steps of others. Unpinned experts stay until their
slots are needed, least recently used first.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from safetensors import safe_open

from expert_store import WEIGHTS_FILE, ExpertVersion, InvalidAdapter, read_config, read_scaling
from server.engine.types import PoolEvent
from server.errors import RequestTooLarge
from server.model.lora import AdapterWeights, LoraArenas, Slots

_PREFIX = "base_model.model."


class Access(Enum):
    """What a job may do with the pool. Those behind one that waits get less, so that it cannot wait for ever."""

    FULL = "evict, place and pin"
    RESIDENT = "pin what is resident"
    NONE = "wait"


@dataclass
class _Resident:
    expert: ExpertVersion
    slots: Slots
    num_pins: int = 0


@dataclass(frozen=True)
class _Loaded:
    weights: AdapterWeights
    seconds: float


class ExpertPool:
    """Owned by the engine thread. `on_ready` is called from the loading thread when a load ends."""

    def __init__(
        self,
        arenas: LoraArenas,
        *,
        num_slots: int,
        slot_rank: int,
        on_ready: Callable[[], None],
        on_event: Callable[[PoolEvent], None],
    ) -> None:
        self._arenas = arenas
        self._slot_rank = slot_rank
        self._slots: list[str | None] = [None] * num_slots
        self._residents: OrderedDict[str, _Resident] = OrderedDict()  # least recently used first
        self._loads: dict[str, Future[_Loaded]] = {}
        self._on_ready = on_ready
        self._on_event = on_event
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="expert-reader")

    @property
    def num_slots(self) -> int:
        return len(self._slots)

    @property
    def num_used(self) -> int:
        return sum(owner is not None for owner in self._slots)

    def slots_for(self, rank: int) -> int:
        return -(-rank // self._slot_rank)

    def check_fits(self, experts: Sequence[ExpertVersion]) -> None:
        """Raises RequestTooLarge if these experts could never be resident together."""
        needed = sum(self.slots_for(expert.rank) for expert in experts)
        if needed > self.num_slots:
            raise RequestTooLarge.slots(needed=needed, total=self.num_slots)

    def try_pin(self, experts: Sequence[ExpertVersion], access: Access) -> list[Slots] | Access:
        """Slots of all these experts, pinned; or, with nothing pinned, what those behind in the line may still do.

        Raises what reading a file raised.
        """
        if access is Access.NONE:
            return Access.NONE
        absent = [expert for expert in experts if expert.digest not in self._residents]
        ready = [self._read(expert) for expert in absent]
        if absent and (access is Access.RESIDENT or not all(ready)):
            return Access.RESIDENT
        wanted = frozenset(expert.digest for expert in experts)
        if not all(self._try_place(expert, keep=wanted) for expert in absent):
            self._make_room()
            self.prefetch(experts)
            return Access.NONE
        return [self._pin(expert) for expert in experts]

    def prefetch(self, experts: Sequence[ExpertVersion]) -> None:
        """Starts reading what is not resident, so that it is there when it is pinned."""
        for expert in experts:
            if expert.digest not in self._residents and expert.digest not in self._loads:
                self._start_reading(expert)

    def unpin(self, expert: ExpertVersion) -> None:
        resident = self._residents[expert.digest]
        assert resident.num_pins > 0, "an expert was unpinned more often than pinned. This is a bug."
        resident.num_pins -= 1

    def pinned_refs(self) -> list[str]:
        return [resident.expert.ref for resident in self._residents.values() if resident.num_pins]

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    def check_idle(self) -> None:
        """Asserts that nothing is pinned. For tests and idle moments."""
        assert not self.pinned_refs(), "experts stay pinned without a request. This is a bug."

    def _read(self, expert: ExpertVersion) -> bool:
        """Starts the load if there is none; True once it is done. Raises what the load raised."""
        load = self._loads.get(expert.digest) or self._start_reading(expert)
        if load.done() and load.exception() is not None:
            del self._loads[expert.digest]
            load.result()
        return load.done()

    def _start_reading(self, expert: ExpertVersion) -> Future[_Loaded]:
        """Whose request has left meanwhile will not be placed; no more such reads are kept than there are slots."""
        finished = [digest for digest, load in self._loads.items() if load.done()]
        for digest in finished[: max(0, len(finished) - self.num_slots)]:
            del self._loads[digest]
        load = self._reader.submit(_load, expert)
        load.add_done_callback(lambda _: self._on_ready())
        self._loads[expert.digest] = load
        return load

    def _try_place(self, expert: ExpertVersion, *, keep: frozenset[str]) -> bool:
        width = self.slots_for(expert.rank)
        start = self._free_run(width)
        while start is None and self._try_evict(keep):
            start = self._free_run(width)
        if start is None:
            return False
        loaded = self._loads.pop(expert.digest).result()
        slots = range(start, start + width)
        self._arenas.write(slots, loaded.weights)
        self._slots[start : start + width] = [expert.digest] * width
        self._residents[expert.digest] = _Resident(expert, slots)
        self._on_event(PoolEvent("load", expert.ref, loaded.seconds))
        return True

    def _make_room(self) -> None:
        """Once no pin is in the way, clears all slots: what is wanted may itself lie across the free ones."""
        if not self.pinned_refs():
            while self._try_evict(frozenset()):
                pass

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

    def _pin(self, expert: ExpertVersion) -> Slots:
        resident = self._residents[expert.digest]
        resident.num_pins += 1
        self._residents.move_to_end(expert.digest)
        return resident.slots


def _load(expert: ExpertVersion) -> _Loaded:
    started = time.perf_counter()
    weights = load_weights(expert.folder)
    return _Loaded(weights, time.perf_counter() - started)


def load_weights(folder: Path) -> AdapterWeights:
    """Reads a PEFT adapter folder that the store has already judged valid.

    Terms of modules with a lower rank (`rank_pattern`) are padded with zero rows up to the highest.
    """
    config = read_config(folder)
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            if key.endswith(".lora_A.weight"):
                module = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
                b = file.get_tensor(key.replace(".lora_A.", ".lora_B.")).float() * read_scaling(config, module)
                pairs[module] = (file.get_tensor(key).float(), b.T)
    if not all(bool(term.isfinite().all()) for pair in pairs.values() for term in pair):
        raise InvalidAdapter(WEIGHTS_FILE, f"{WEIGHTS_FILE}: its scaled weights are not finite: lower lora_alpha")
    rank = max(a.shape[0] for a, _ in pairs.values())
    return AdapterWeights(rank, {module: (_padded(a, rank), _padded(b, rank)) for module, (a, b) in pairs.items()})


def _padded(term: torch.Tensor, rank: int) -> torch.Tensor:
    return torch.nn.functional.pad(term, (0, 0, 0, rank - term.shape[0]))
