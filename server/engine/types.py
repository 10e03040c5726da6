"""What the engine takes and gives, as plain values. Holds no state and no tensors."""

from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]
LoadSource = Literal["disk", "host"]


@dataclass(frozen=True)
class Token:
    """One generated token; the last one of a generation says why it ended."""

    token: int
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class IndicatorLogits:
    """An expert's logits of the first tokens in which its accept and reject strings differ."""

    accept: float
    reject: float


@dataclass(frozen=True)
class Branches:
    """How many probes a request may hold at once: activated ones share the prompt's blocks, plain ones do not.

    `mixed`: so many experts answer together, each with keys and values of its own for the whole of prompt and answer.
    """

    activated: int = 0
    plain: int = 0
    mixed: int = 0

    def __add__(self, other: "Branches") -> "Branches":
        return Branches(self.activated + other.activated, self.plain + other.plain, self.mixed + other.mixed)


@dataclass(frozen=True)
class StepStats:
    """One step of the engine. `reused` counts tokens that were not computed because the prefix cache had them."""

    seconds: float
    tokens: int
    sequences: int
    experts: int
    reused: int = 0


@dataclass(frozen=True)
class Occupancy:
    """How full the engine is."""

    waiting_sessions: int
    active_sessions: int
    kv_blocks_used: int
    kv_blocks_reserved: int
    kv_blocks_total: int
    slots_used: int
    slots_total: int
    host_bytes_used: int
    host_bytes_total: int


@dataclass(frozen=True)
class PoolEvent:
    """An expert entered or left the device slots.

    `seconds` is the time its load took, `source` where its bytes came from: read for this load, or in the host cache.
    """

    kind: Literal["load", "evict"]
    ref: str
    seconds: float
    source: LoadSource | None = None


class EngineObserver(Protocol):
    """Told on the engine thread; must be quick."""

    def on_step(self, stats: StepStats) -> None: ...

    def on_occupancy(self, occupancy: Occupancy) -> None:
        """Whenever it has changed, also when the engine falls idle."""
        ...

    def on_pool_event(self, event: PoolEvent) -> None: ...
