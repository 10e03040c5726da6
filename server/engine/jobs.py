"""What a session can ask of the engine: indicator logits, plain logits, a generation. Knows no scheduling and no text.

A job first *prepares*: it waits until the shared prompt is nearly computed, pins its experts, and opens its lanes. The
step loop then brings the lanes to their last token, and the job takes the logits it waited for.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from expert_store import ExpertVersion
from server.engine.expert_pool import Access, ExpertPool
from server.engine.kv_cache import BlockPool
from server.engine.lately_chosen import LatelyChosen
from server.engine.prefix import PrefixCache
from server.engine.prompt_states import States
from server.engine.scheduler import Choice
from server.engine.session_state import Lane, SessionState
from server.engine.step_logits import StepLogits
from server.engine.types import FinishReason, IndicatorLogits, Token
from server.errors import InvocationMissing
from server.model.chat import IndicatorTokens, Prompt, activation_start
from server.model.lora_plan import Slots
from server.model.sampling import SampleRow, Sampling


@dataclass(frozen=True)
class Resources:
    """What jobs draw on, and how far the job's place in the line lets it go with the pool.

    `near_tokens`: a sequence that lacks no more tokens than these can be had in the next step, with others in it.
    `chosen`: those that are asked and among them compute the logits of their first tokens as well.
    """

    near_tokens: int
    chosen: LatelyChosen
    blocks: BlockPool
    prefix: PrefixCache
    pool: ExpertPool
    access: Access


@dataclass(frozen=True)
class Waking:
    """An expert and the token it wakes up at (0: it is a plain LoRA)."""

    expert: ExpertVersion
    start: int

    @classmethod
    def of(cls, expert: ExpertVersion, prompt: Prompt, shared: tuple[int, ...]) -> "Waking":
        """`shared`: the tokens its indicators begin with, which stand behind the prompt and may be what wakes it up.

        Raises InvocationMissing.
        """
        if expert.invocation_tokens is None:
            return cls(expert, 0)
        start = activation_start((*prompt.tokens, *shared), expert.invocation_tokens)
        if start is None:
            raise InvocationMissing(expert.ref)
        return cls(expert, start)


def open_expert_lane(
    state: SessionState,
    waking: Waking,
    slots: Slots,
    tail: tuple[int, ...],
    resources: Resources,
    *,
    choice: Choice | None = None,
) -> Lane:
    """Opens the lane of a pinned expert over prompt and tail, on the base lane's prompt where it can."""
    tokens = [*state.prompt.tokens, *tail]
    if waking.start == 0 or state.base is None:
        return state.open_lane(waking.expert, slots, waking.start, tokens, resources.prefix, choice)
    return state.fork_base(waking.expert, slots, waking.start, tokens, resources.blocks, choice)


def base_is_near(state: SessionState, num_tokens: int, resources: Resources) -> bool:
    """Has the base lane compute so much of the prompt; True once a step or less will compute what is left."""
    if state.base is None or len(state.base.sequence.tokens) < num_tokens:
        state.open_base(state.prompt.tokens[:num_tokens], resources.prefix, wants_logits=False)
    assert state.base is not None, "the base lane was opened above. This is a bug."
    return state.base.sequence.num_pending <= resources.near_tokens


@dataclass(eq=False)
class ProbeJob:
    """Indicator logits of several experts; their lanes stay open.

    Experts lately chosen compute the whole accept string at once, so that if one is chosen again it has its first token
    already: what many compute in vain would take longer than a step.
    """

    future: "asyncio.Future[list[IndicatorLogits]]"
    probes: Seq[tuple[Waking, IndicatorTokens]]
    _lanes: list[Lane] = field(default_factory=list)
    _results: dict[str, IndicatorLogits] = field(default_factory=dict)

    def prepare(self, state: SessionState, resources: Resources) -> Access:
        """Opens the lanes; returns what those behind may do."""
        if self._lanes:
            return resources.access
        experts = [waking.expert for waking, _ in self.probes]
        latest = min(max(waking.start for waking, _ in self.probes), len(state.prompt.tokens))
        if latest and not base_is_near(state, max(latest, state.prompt.body_length), resources):
            resources.pool.prefetch(experts)
            return resources.access
        pinned = state.try_pin(experts, resources.pool, resources.access)
        if isinstance(pinned, Access):
            return pinned
        ahead = resources.chosen.among([expert.digest for expert in experts if expert.answers_after_accept])
        choices: dict[IndicatorTokens, Choice] = {}  # most experts have the same indicators
        for (waking, indicators), slots in zip(self.probes, pinned, strict=True):
            tail = indicators.accept if waking.expert.digest in ahead else indicators.shared
            if indicators not in choices:
                at = len(state.prompt.tokens) + indicators.shared_length
                choices[indicators] = Choice(at, (indicators.accept_token, indicators.reject_token))
            self._lanes.append(open_expert_lane(state, waking, slots, tail, resources, choice=choices[indicators]))
        return resources.access

    def take(self, state: SessionState, logits: StepLogits, resources: Resources) -> None:
        """Reads the indicator logits of lanes that have come so far; answers when all have."""
        for lane, (waking, _) in zip(self._lanes, self.probes, strict=False):
            choice = logits.choice(lane.sequence)
            if choice is not None:
                self._results[waking.expert.digest] = IndicatorLogits(*choice)
            last_V = logits.behind(lane.sequence)
            if last_V is not None:
                lane.logits_V = last_V.clone()
        if len(self._results) == len(self.probes) and not any(lane.sequence.num_pending for lane in self._lanes):
            state.end_job(resources.pool)  # not before: lanes without pins would go on in somebody else's slots
            state.resolve(self.future, [self._results[waking.expert.digest] for waking, _ in self.probes])

    def fail(self, state: SessionState, error: Exception) -> None:
        state.reject(self.future, error)


@dataclass(eq=False)
class LogitsJob:
    """All logits at the end of the prompt, of the base and through one expert; nothing stays open.

    The base waits for the expert's files, so that it is in the same step where there is room.
    """

    future: "asyncio.Future[tuple[Tensor, Tensor]]"
    waking: Waking
    _lanes: list[Lane] = field(default_factory=list)
    _rows: dict[int, Tensor] = field(default_factory=dict)

    def prepare(self, state: SessionState, resources: Resources) -> Access:
        """Opens the lanes; returns what those behind may do."""
        if self._lanes:
            return resources.access
        pinned = state.try_pin([self.waking.expert], resources.pool, resources.access)
        if isinstance(pinned, Access):
            return pinned
        base = state.open_base(state.prompt.tokens, resources.prefix, wants_logits=True)
        self._lanes = [base, open_expert_lane(state, self.waking, pinned[0], (), resources)]
        return resources.access

    def take(self, state: SessionState, logits: StepLogits, resources: Resources) -> None:
        """Answers once both lanes have come to their end."""
        for index, lane in enumerate(self._lanes):
            last_V = logits.behind(lane.sequence)
            if last_V is not None:
                self._rows[index] = last_V.float().cpu()
        if len(self._rows) == 2:
            state.end_job(resources.pool)
            for lane in self._lanes:
                state.drop(lane, resources.blocks)
            state.resolve(self.future, (self._rows[0], self._rows[1]))

    def fail(self, state: SessionState, error: Exception) -> None:
        state.reject(self.future, error)


@dataclass(eq=False)
class StatesJob:
    """The prompt's mean hidden states [L, D] in the base. Nothing stays open; its blocks stay in the prefix cache."""

    future: "asyncio.Future[States]"
    _lane: Lane | None = None

    def prepare(self, state: SessionState, resources: Resources) -> Access:
        """Opens the lane; returns what those behind may do."""
        if self._lane is None:
            self._lane = state.open_watched()
        return resources.access

    def take(self, state: SessionState, logits: StepLogits, resources: Resources) -> None:  # noqa: ARG002
        """Answers once the whole prompt has been computed."""
        if self._lane is None or self._lane.sequence.num_pending:
            return
        gathered = self._lane.sequence.states
        assert gathered is not None, "its lane is watched. This is a bug."
        state.end_job(resources.pool)
        state.drop(self._lane, resources.blocks)
        state.resolve(self.future, gathered.mean())

    def fail(self, state: SessionState, error: Exception) -> None:
        state.reject(self.future, error)


@dataclass(eq=False)
class Answer(ABC):
    """An answer under way: its tokens, one a step, and when they end. `GenerateJob` has one lane, `MixtureJob` many."""

    sampling: Sampling
    stop_tokens: frozenset[int]
    generator: torch.Generator
    _tokens: "asyncio.Queue[Token | Exception]" = field(default_factory=asyncio.Queue)
    _new: list[int] = field(default_factory=list)

    async def next_token(self) -> Token:
        """Waits on the event loop; raises what ended the generation before its time."""
        item = await self._tokens.get()
        if isinstance(item, Exception):
            raise item
        return item

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
        self._new.append(token)
        reason = self._finish_reason(token)
        state.call(lambda: self._tokens.put_nowait(Token(token, reason)))
        if reason is None:
            for lane in self.lanes:
                lane.sequence.tokens.append(token)
        else:
            state.end_job(resources.pool)
            for lane in self.lanes:
                state.drop(lane, resources.blocks)

    def end_with(self, state: SessionState, error: Exception, resources: Resources) -> None:
        """Ends the job before its time."""
        state.end_job(resources.pool)
        self.fail(state, error)

    def fail(self, state: SessionState, error: Exception) -> None:
        state.call(lambda: self._tokens.put_nowait(error))

    @property
    @abstractmethod
    def lanes(self) -> Seq[Lane]:
        """Those that compute the answer, all of them open once it has begun."""

    @property
    @abstractmethod
    def refs(self) -> str | None:
        """Who answers, in words; None for the base."""

    @abstractmethod
    def prepare(self, state: SessionState, resources: Resources) -> Access:
        """Opens or takes over its lanes and drops all others; returns what those behind may do."""

    def _finish_reason(self, token: int) -> FinishReason | None:
        if token in self.stop_tokens and not self.sampling.ignore_eos:
            return "stop"
        return "length" if len(self._new) >= self.sampling.max_new_tokens else None


@dataclass(eq=False, kw_only=True)
class GenerateJob(Answer):
    """An answer of one expert, or of the base."""

    waking: Waking | None
    accept: tuple[int, ...]  # the accept string, put before the answer; empty for the base and for plain experts
    lane: Lane | None = None

    @property
    def lanes(self) -> Seq[Lane]:
        assert self.lane is not None, "a token came for a generation that has not begun. This is a bug."
        return (self.lane,)

    @property
    def refs(self) -> str | None:
        return None if self.waking is None else self.waking.expert.ref

    def prepare(self, state: SessionState, resources: Resources) -> Access:
        """Opens or takes over a lane and drops all others; returns what those behind may do."""
        if self.lane is not None:
            if state.base is not None and state.base is not self.lane:
                self._drop_others(state, resources)  # it may need nothing of the base any more
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

    def _drop_others(self, state: SessionState, resources: Resources) -> None:
        """All but a base lane of which the answer's lane has still to copy a part: a freed block is soon another's."""
        kept = state.base if self.lane is not None and self.lane.sequence.needs_parent else None
        for lane in list(state.lanes()):
            if lane is not self.lane and lane is not kept:
                state.drop(lane, resources.blocks)

    def _base_lane(self, state: SessionState, resources: Resources) -> Lane:
        return state.open_base(state.prompt.tokens, resources.prefix, wants_logits=True)

    def _expert_lane(self, state: SessionState, waking: Waking, resources: Resources) -> Lane | Access:
        pinned = state.try_pin([waking.expert], resources.pool, resources.access)
        if isinstance(pinned, Access):
            return pinned
        held = state.asked.get(waking.expert.digest)
        if held is None:
            if waking.start < max(1, state.prompt.body_length):
                self._drop_others(state, resources)  # shares little or nothing with them; their room is reserved for it
            return open_expert_lane(state, waking, pinned[0], self.accept, resources)
        held.sequence.tokens = [*state.prompt.tokens, *self.accept]
        held.sequence.slots = pinned[0]  # its slots may have changed hands since it was asked
        held.sequence.choice = None
        resources.chosen.note(waking.expert.digest)
        if held.logits_V is None and held.sequence.num_pending == 0:
            held.sequence.computed -= 1  # its logits were not kept, so its last token runs once more
        return held


Job = ProbeJob | LogitsJob | StatesJob | Answer
