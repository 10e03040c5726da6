"""What a session can ask of the engine: indicator logits, plain logits, a generation. Knows no scheduling and no text.

A job first *prepares*: it pins its experts, waits for the shared prompt, and opens its lanes. The step loop then brings
the lanes to their last token, and the job takes the logits it waited for.
"""

import asyncio
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from expert_store import ExpertVersion
from server.engine.expert_pool import Access, ExpertPool
from server.engine.kv_cache import BlockPool
from server.engine.prefix import PrefixCache
from server.engine.runner import Runner
from server.engine.session_state import Lane, SessionState
from server.engine.types import FinishReason, IndicatorLogits, Token
from server.errors import InvocationMissing
from server.model.chat import IndicatorTokens, Prompt, activation_start
from server.model.lora import Slots
from server.model.sampling import SampleRow, Sampling


@dataclass(frozen=True)
class Resources:
    """What jobs draw on, and how far the job's place in the line lets it go with the pool."""

    runner: Runner
    blocks: BlockPool
    prefix: PrefixCache
    pool: ExpertPool
    access: Access


@dataclass(frozen=True)
class Waking:
    """An expert and the token of the prompt it wakes up at (0: it is a plain LoRA)."""

    expert: ExpertVersion
    start: int

    @classmethod
    def of(cls, expert: ExpertVersion, prompt: Prompt) -> "Waking":
        """Raises InvocationMissing."""
        if expert.invocation_tokens is None:
            return cls(expert, 0)
        start = activation_start(prompt.tokens, expert.invocation_tokens)
        if start is None:
            raise InvocationMissing(expert.ref)
        return cls(expert, start)


def open_expert_lane(
    state: SessionState, waking: Waking, slots: Slots, tail: tuple[int, ...], resources: Resources
) -> Lane:
    """Opens the lane of a pinned expert over prompt and tail, on the base lane's computed prompt where it can."""
    tokens = [*state.prompt.tokens, *tail]
    if waking.start == 0 or state.base is None:
        return state.open_lane(waking.expert, slots, waking.start, tokens, resources.prefix)
    lane, copied = state.fork_base(waking.expert, slots, waking.start, tokens, resources.blocks)
    if copied is not None:
        resources.runner.kv.copy_block(*copied)
    return lane


def base_is_computed(state: SessionState, prefix: PrefixCache) -> bool:
    """Opens the base lane over the prompt's body if there is none; True once all of it is computed."""
    if state.base is None:
        state.open_base(state.prompt.tokens[: state.prompt.body_length], prefix, wants_logits=False)
    assert state.base is not None, "the base lane was opened above. This is a bug."
    return state.base.sequence.num_pending == 0


@dataclass(eq=False)
class ProbeJob:
    """Indicator logits of several experts; their lanes stay open."""

    future: "asyncio.Future[list[IndicatorLogits]]"
    probes: Seq[tuple[Waking, IndicatorTokens]]
    _lanes: list[Lane] = field(default_factory=list)
    _results: dict[str, IndicatorLogits] = field(default_factory=dict)

    def prepare(self, state: SessionState, resources: Resources) -> Access:
        """Opens the lanes; returns what those behind may do."""
        if self._lanes:
            return resources.access
        experts = [waking.expert for waking, _ in self.probes]
        if any(waking.start for waking, _ in self.probes) and not base_is_computed(state, resources.prefix):
            resources.pool.prefetch(experts)
            return resources.access
        pinned = state.try_pin(experts, resources.pool, resources.access)
        if isinstance(pinned, Access):
            return pinned
        for (waking, indicators), slots in zip(self.probes, pinned, strict=True):
            self._lanes.append(open_expert_lane(state, waking, slots, indicators.shared, resources))
        return resources.access

    def take(self, state: SessionState, rows: Mapping[int, int], logits_WV: Tensor, resources: Resources) -> None:
        """Reads the indicator logits of lanes that have come to their end; answers when all have."""
        for lane, (waking, indicators) in zip(self._lanes, self.probes, strict=False):
            row = rows.get(id(lane.sequence))
            if row is not None:
                pair = logits_WV[row, [indicators.accept_token, indicators.reject_token]].tolist()
                self._results[waking.expert.digest] = IndicatorLogits(accept=pair[0], reject=pair[1])
        if len(self._results) == len(self.probes):
            state.end_job(resources.pool)
            state.resolve(self.future, [self._results[waking.expert.digest] for waking, _ in self.probes])

    def fail(self, state: SessionState, error: Exception) -> None:
        state.reject(self.future, error)


@dataclass(eq=False)
class LogitsJob:
    """All logits at the end of the prompt, through one expert or the base; nothing stays open."""

    future: "asyncio.Future[Tensor]"
    waking: Waking | None
    _lane: Lane | None = None

    def prepare(self, state: SessionState, resources: Resources) -> Access:
        """Opens the lane; returns what those behind may do."""
        if self._lane is not None:
            return resources.access
        if self.waking is None:
            self._lane = state.open_base(state.prompt.tokens, resources.prefix, wants_logits=True)
            return resources.access
        pinned = state.try_pin([self.waking.expert], resources.pool, resources.access)
        if isinstance(pinned, Access):
            return pinned
        tokens = list(state.prompt.tokens)
        self._lane = state.open_lane(self.waking.expert, pinned[0], self.waking.start, tokens, resources.prefix)
        return resources.access

    def take(self, state: SessionState, rows: Mapping[int, int], logits_WV: Tensor, resources: Resources) -> None:
        """Answers once the lane has come to its end."""
        row = rows.get(id(self._lane.sequence)) if self._lane is not None else None
        if row is not None and self._lane is not None:
            state.end_job(resources.pool)
            state.drop(self._lane, resources.blocks)
            state.resolve(self.future, logits_WV[row].float().cpu())

    def fail(self, state: SessionState, error: Exception) -> None:
        state.reject(self.future, error)


@dataclass(eq=False)
class GenerateJob:
    """The tokens of an answer, one a step."""

    waking: Waking | None
    accept: tuple[int, ...]  # the accept string, put before the answer; empty for the base and for plain experts
    sampling: Sampling
    stop_tokens: frozenset[int]
    generator: torch.Generator
    _tokens: "asyncio.Queue[Token | Exception]" = field(default_factory=asyncio.Queue)
    _new: list[int] = field(default_factory=list)
    lane: Lane | None = None

    async def next_token(self) -> Token:
        """Waits on the event loop; raises what ended the generation before its time."""
        item = await self._tokens.get()
        if isinstance(item, Exception):
            raise item
        return item

    def prepare(self, state: SessionState, resources: Resources) -> Access:
        """Opens or takes over a lane and drops all others; returns what those behind may do."""
        if self.lane is not None:
            return resources.access
        lane = (
            self._base_lane(state, resources)
            if self.waking is None
            else self._expert_lane(state, self.waking, resources)
        )
        if isinstance(lane, Access):
            return lane
        self.lane = lane
        self._drop_others(state, resources)
        return resources.access

    def sample_row(self, prompt: Prompt) -> SampleRow:
        early = len(self._new) < self.sampling.min_new_tokens
        return SampleRow(
            sampling=self.sampling,
            prompt_tokens=prompt.tokens,
            new_tokens=self._new,
            forbidden=sorted(self.stop_tokens) if early or self.sampling.ignore_eos else (),
            generator=self.generator,
        )

    def append(self, state: SessionState, token: int, resources: Resources) -> None:
        """Takes the sampled token, delivers it, and ends the job where it was the last."""
        assert self.lane is not None, "a token came for a generation that has not begun. This is a bug."
        self._new.append(token)
        reason = self._finish_reason(token)
        state.call(lambda: self._tokens.put_nowait(Token(token, reason)))
        if reason is None:
            self.lane.sequence.tokens.append(token)
        else:
            state.end_job(resources.pool)
            state.drop(self.lane, resources.blocks)

    def end_with(self, state: SessionState, error: Exception, resources: Resources) -> None:
        """Ends the job before its time."""
        state.end_job(resources.pool)
        self.fail(state, error)

    def fail(self, state: SessionState, error: Exception) -> None:
        state.call(lambda: self._tokens.put_nowait(error))

    def _drop_others(self, state: SessionState, resources: Resources) -> None:
        for lane in list(state.lanes()):
            if lane is not self.lane:
                state.drop(lane, resources.blocks)

    def _finish_reason(self, token: int) -> FinishReason | None:
        if token in self.stop_tokens and not self.sampling.ignore_eos:
            return "stop"
        return "length" if len(self._new) >= self.sampling.max_new_tokens else None

    def _base_lane(self, state: SessionState, resources: Resources) -> Lane:
        return state.open_base(state.prompt.tokens, resources.prefix, wants_logits=True)

    def _expert_lane(self, state: SessionState, waking: Waking, resources: Resources) -> Lane | Access:
        pinned = state.try_pin([waking.expert], resources.pool, resources.access)
        if isinstance(pinned, Access):
            return pinned
        held = state.asked.get(waking.expert.digest)
        if held is None:
            if waking.start == 0:
                self._drop_others(state, resources)  # shares nothing with them, and their room is reserved for it
            return open_expert_lane(state, waking, pinned[0], self.accept, resources)
        held.sequence.tokens = [*state.prompt.tokens, *self.accept]
        held.sequence.slots = pinned[0]  # its slots may have changed hands since it was asked
        return held


Job = ProbeJob | LogitsJob | GenerateJob
