"""What one session holds on the engine thread: its reservation and its lanes. Knows no tensors and no policy.

A *lane* is a sequence together with the expert that computes it. A session may hold a base lane, whose computed prompt
activated experts share, and one lane for each expert it has asked. Experts are pinned only while a job computes with
them, never while it waits: so no two sessions can wait for each other's slots.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from expert_store import ExpertVersion
from server.engine.expert_pool import Access, ExpertPool
from server.engine.kv_cache import BlockPool, BlockTable, Reservation
from server.engine.outbox import Outbox
from server.engine.prefix import PrefixCache
from server.engine.prompt_states import PromptStates
from server.engine.scheduler import BlockCopy, Choice, Fork, Sequence
from server.model.chat import Prompt
from server.model.lora_plan import Blend, Slots


@dataclass(eq=False)
class Lane:
    """A sequence and the expert that computes it (None: the base, or several together).

    `logits_V` are those behind its last token, where they were computed before anybody asked for them.
    """

    sequence: Sequence
    expert: ExpertVersion | None
    logits_V: Tensor | None = None


@dataclass(eq=False)
class SessionState:
    """Created on the event loop, owned by the engine thread once posted."""

    prompt: Prompt
    num_blocks: int
    loop: asyncio.AbstractEventLoop
    outbox: Outbox
    patient: bool = False
    jobs: deque[Any] = field(default_factory=deque)
    base: Lane | None = None
    asked: dict[str, Lane] = field(default_factory=dict)  # by the digest of who computes
    pinned: list[ExpertVersion] = field(default_factory=list)  # by the first job, until it ends
    reservation: Reservation | None = None
    computed_tokens: int = 0
    queue_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.admitted: asyncio.Future[None] = self.loop.create_future()
        self._opened = time.perf_counter()

    def lanes(self) -> Iterator[Lane]:
        if self.base is not None:
            yield self.base
        yield from self.asked.values()

    def admit(self, reservation: Reservation) -> None:
        self.reservation = reservation
        self.queue_seconds = time.perf_counter() - self._opened
        self.resolve(self.admitted, None)

    def open_base(self, tokens: tuple[int, ...], prefix: PrefixCache, *, wants_logits: bool) -> Lane:
        """The base lane, made or extended so that it will compute `tokens`."""
        if self.base is None:
            fresh = Sequence(list(tokens), BlockTable(self._claim()), wants_logits=wants_logits)
            prefix.adopt(fresh)
            self.base = Lane(fresh, expert=None)
        sequence = self.base.sequence
        assert list(tokens[: len(sequence.tokens)]) == sequence.tokens, "a base lane can only grow. This is a bug."
        sequence.tokens = list(tokens)
        sequence.wants_logits = wants_logits
        if wants_logits and sequence.num_pending == 0:
            sequence.computed -= 1  # its logits were not kept, so its last token runs once more
        return self.base

    def open_lane(
        self,
        expert: ExpertVersion,
        slots: Slots,
        start: int,
        tokens: list[int],
        prefix: PrefixCache,
        choice: Choice | None = None,
    ) -> Lane:
        """A fresh lane for a pinned expert that wakes up at token `start`."""
        sequence = Sequence(
            tokens,
            BlockTable(self._claim()),
            slots=slots,
            activation_start=start,
            digest=expert.digest,
            choice=choice,
        )
        prefix.adopt(sequence)
        self.asked[expert.digest] = Lane(sequence, expert)
        return self.asked[expert.digest]

    def open_blend(self, digest: str, blend: Blend, tokens: list[int], prefix: PrefixCache) -> Lane:
        """A fresh lane for pinned experts that compute together from the first token on; `digest` names the blend."""
        sequence = Sequence(tokens, BlockTable(self._claim()), slots=blend, activation_start=0, digest=digest)
        prefix.adopt(sequence)
        self.asked[digest] = Lane(sequence, expert=None)
        return self.asked[digest]

    def open_watched(self) -> Lane:
        """A lane that runs the base over the whole prompt, whatever of it is cached, for its hidden states."""
        tokens, digest = list(self.prompt.tokens), "(states)"
        sequence = Sequence(tokens, BlockTable(self._claim()), wants_logits=False, digest=digest, states=PromptStates())
        self.asked[digest] = Lane(sequence, expert=None)
        return self.asked[digest]

    def fork_base(
        self,
        expert: ExpertVersion,
        slots: Slots,
        start: int,
        tokens: list[int],
        blocks: BlockPool,
        choice: Choice | None = None,
    ) -> Lane:
        """A lane for a pinned expert that shares what the base lane computes, or will, before token `start`."""
        assert self.base is not None, "there is no base lane to fork. This is a bug."
        parent = self.base.sequence
        shared = min(start, len(parent.tokens), len(tokens) - 1)
        blocks.grow(parent.table, shared)
        table, copied = blocks.fork(parent.table, shared)
        sequence = Sequence(
            tokens,
            table,
            slots=slots,
            activation_start=start,
            computed=shared,
            digest=expert.digest,
            choice=choice,
            fork=Fork(parent, shared, None if copied is None else BlockCopy(*copied, shared % blocks.block_tokens)),
        )
        self.asked[expert.digest] = Lane(sequence, expert)
        return self.asked[expert.digest]

    def try_pin(self, experts: Seq[ExpertVersion], pool: ExpertPool, access: Access) -> list[Slots] | Access:
        """Pins experts for the first job, as `ExpertPool.try_pin`."""
        slots = pool.try_pin(experts, access)
        if not isinstance(slots, Access):
            self.pinned += experts
        return slots

    def end_job(self, pool: ExpertPool) -> None:
        """Takes the first job off and gives back its pins."""
        self.jobs.popleft()
        self._unpin(pool)

    def drop(self, lane: Lane, blocks: BlockPool) -> None:
        """Frees one lane's blocks."""
        blocks.free(lane.sequence.table)
        if lane is self.base:
            self.base = None
        else:
            del self.asked[lane.sequence.digest]

    def release(self, blocks: BlockPool, pool: ExpertPool) -> None:
        """Frees everything."""
        self._unpin(pool)
        for lane in list(self.lanes()):
            self.drop(lane, blocks)
        if self.reservation is not None:
            blocks.release(self.reservation)
            self.reservation = None
        self.jobs.clear()

    def fail(self, error: Exception) -> None:
        """Lets whoever waits for this session know that nothing will come."""
        if not self.admitted.done():
            self.reject(self.admitted, error)
        for job in self.jobs:
            job.fail(self, error)

    def resolve(self, future: "asyncio.Future[Any]", value: object) -> None:
        self.call(lambda: None if future.done() else future.set_result(value))

    def reject(self, future: "asyncio.Future[Any]", error: Exception) -> None:
        self.call(lambda: None if future.done() else future.set_exception(error))

    def call(self, callback: Callable[[], object]) -> None:
        """Has the session's event loop run the callback soon."""
        self.outbox.put(self.loop, callback)

    def _unpin(self, pool: ExpertPool) -> None:
        for expert in self.pinned:
            pool.unpin(expert)
        self.pinned.clear()

    def _claim(self) -> Reservation:
        assert self.reservation is not None, "a session worked before it was admitted. This is a bug."
        return self.reservation
