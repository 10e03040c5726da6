"""An engine with the real signatures and no model: experts accept prompts that hold their name."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from expert_store import ExpertVersion
from server.engine import (
    Answerer,
    Branches,
    EngineConfig,
    EngineObserver,
    IndicatorLogits,
    Occupancy,
    PoolEvent,
    Sampling,
    StepStats,
    Token,
)
from server.engine.answerer import experts_of
from server.engine.prompt_states import States
from server.errors import EngineStopped, PromptTooLong, RequestTooLarge
from server.model.base import Base
from server.model.chat import ChatFormat, Prompt, activation_start


class FakeEngine:
    """Answers "NAME: hello wörld 😀" word by word; while `resume` is cleared, answers wait from token `pause_at` on."""

    def __init__(self, base: Base, chat: ChatFormat, config: EngineConfig, observer: EngineObserver) -> None:
        self.base, self.chat, self.config, self.observer = base, chat, config, observer
        self.alive = False
        self.sessions: list[FakeSession] = []
        self.samplings: list[Sampling] = []
        self.answer = " {name}: hello wörld 😀"
        self.effect = 1.5
        self.effect_by_kind: dict[str, float] = {}
        self.adopted: list[tuple[ExpertVersion, ExpertVersion]] = []
        self.forgotten: list[str] = []
        self.measured: list[ExpertVersion] = []
        self.resume = asyncio.Event()
        self.resume.set()
        self.pause_at: int | None = None
        self.failure: Exception | None = None
        self.fail_after: int | None = None
        self.most_branches: int | None = None

    @property
    def max_context(self) -> int:
        return self.base.max_context

    def room(self, prompt: Prompt, branches: Branches) -> int:  # noqa: ARG002 - all of it is context
        return max(0, self.max_context - len(prompt.tokens))

    @property
    def num_open(self) -> int:
        return sum(not session.closed for session in self.sessions)

    def start(self) -> None:
        self.alive = True

    def stop(self) -> None:
        self.alive = False

    async def open(self, prompt: Prompt, *, max_new_tokens: int, branches: Branches | None = None) -> "FakeSession":
        if not self.alive:
            raise EngineStopped("the engine is not running")
        if len(prompt.tokens) + max_new_tokens > self.base.max_context:
            raise PromptTooLong(
                prompt_tokens=len(prompt.tokens), max_new_tokens=max_new_tokens, limit=self.base.max_context
            )
        wanted = branches or Branches()
        needed = wanted.activated + wanted.plain
        if self.most_branches is not None and needed > self.most_branches:
            raise RequestTooLarge.blocks(needed=needed, total=self.most_branches, block_tokens=1)
        session = FakeSession(self, prompt, wanted)
        self.sessions.append(session)
        return session

    async def measure_effect(self, expert: ExpertVersion, prompt: Prompt) -> float:  # noqa: ARG002
        self.measured.append(expert)
        self.observer.on_pool_event(PoolEvent("load", expert.ref, 0.001, "disk"))
        return self.effect_by_kind.get(expert.kind, self.effect)

    def adopt(self, candidate: ExpertVersion, version: ExpertVersion) -> None:
        self.adopted.append((candidate, version))

    def forget(self, version: ExpertVersion) -> None:
        self.forgotten.append(version.ref)


class FakeSession:
    """Counts the prompt once and every probe and token."""

    def __init__(self, engine: FakeEngine, prompt: Prompt, branches: Branches) -> None:
        self._engine = engine
        self.prompt, self.branches = prompt, branches
        self.queue_seconds = 0.001
        self.computed_tokens = len(prompt.tokens)
        self.scored: list[str] = []
        self.closed = False

    async def score(self, experts: Sequence[ExpertVersion]) -> list[IndicatorLogits]:
        text = self._engine.base.tokenizer.decode(self.prompt.tokens)
        self.scored += [expert.ref for expert in experts]
        self.computed_tokens += len(experts)
        return [IndicatorLogits(4.0, -4.0) if e.name in text else IndicatorLogits(-4.0, 4.0) for e in experts]

    async def prompt_states(self) -> States:
        """Ones in the layers' every place, twos where the prompt has the word "two"."""
        text = str(self._engine.base.tokenizer.decode(self.prompt.tokens))
        config = self._engine.base.model.config
        states: States = np.full((config.num_hidden_layers, config.hidden_size), 2 if "two" in text else 1, np.float32)
        return states

    def wakes(self, expert: ExpertVersion) -> bool:
        """As the engine sees it, for experts whose indicators are no invocation."""
        return not (expert.invocation_tokens and activation_start(self.prompt.tokens, expert.invocation_tokens) is None)

    def drop(self, experts: Sequence[ExpertVersion]) -> None: ...

    def prefetch(self, experts: Sequence[ExpertVersion]) -> None: ...

    async def generate(self, answerer: Answerer, sampling: Sampling) -> AsyncIterator[Token]:
        self._engine.samplings.append(sampling)
        text = self._engine.answer.format(name="+".join(e.name for e in experts_of(answerer)) or "base")
        tokens = [*self._engine.chat.encode(text), next(iter(self._engine.base.stop_tokens))]
        for index, token in enumerate(tokens):
            if index == self._engine.pause_at:
                self._engine.resume.clear()
            await self._engine.resume.wait()
            if self._engine.failure is not None and index == (self._engine.fail_after or 0):
                raise self._engine.failure
            await asyncio.sleep(0)
            self.computed_tokens += 1
            self._report()
            reason = "stop" if index == len(tokens) - 1 else "length" if index + 1 == sampling.max_new_tokens else None
            yield Token(token, reason)
            if reason is not None:
                return

    def _report(self) -> None:
        self._engine.observer.on_step(StepStats(seconds=0.01, tokens=1, sequences=1, experts=1))
        self._engine.observer.on_occupancy(
            Occupancy(
                waiting_sessions=0,
                active_sessions=1,
                kv_blocks_used=1,
                kv_blocks_reserved=2,
                kv_blocks_total=8,
                slots_used=1,
                slots_total=8,
                host_bytes_used=1,
                host_bytes_total=8,
            )
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True
