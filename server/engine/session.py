"""One request's hold on the engine, seen from the event loop. Knows which jobs to give it; nothing of how they run."""

import asyncio
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from expert_store import ExpertVersion
from server.engine.answerer import Answerer
from server.engine.jobs import StatesJob
from server.engine.prompt_states import States
from server.engine.session_state import SessionState
from server.engine.types import IndicatorLogits, Token
from server.errors import InvocationMissing
from server.model.chat import Prompt
from server.model.sampling import Sampling

if TYPE_CHECKING:
    from server.engine.engine import Engine


class Session:
    """One request's hold on the engine. Use as an async context manager: leaving it frees everything."""

    def __init__(self, engine: "Engine", state: SessionState) -> None:
        self._engine = engine
        self._state = state

    @property
    def prompt(self) -> Prompt:
        return self._state.prompt

    @property
    def queue_seconds(self) -> float:
        """Time from opening to admission."""
        return self._state.queue_seconds

    @property
    def computed_tokens(self) -> int:
        """Tokens run through the model for this request so far."""
        return self._state.computed_tokens

    async def score(self, experts: Seq[ExpertVersion]) -> list[IndicatorLogits]:
        """Asks self-selecting experts, all in one batch; their sequences are kept until dropped.

        Raises InvocationMissing, RequestTooLarge, EngineStopped, or what reading an expert's files raised.
        """
        job = self._engine.jobs.probe(self._future(), self.prompt, experts)
        self._engine.submit(self._state, job)
        return await job.future

    async def logits(self, expert: ExpertVersion) -> tuple[torch.Tensor, torch.Tensor]:
        """[V] fp32 logits at the end of the prompt, with no indicator behind it: the base's, and through the expert."""
        job = self._engine.jobs.logits(self._future(), self.prompt, expert)
        self._engine.submit(self._state, job)
        return await job.future

    async def prompt_states(self) -> States:
        """[L, D] fp32: the mean over the prompt's tokens of the hidden state that enters each layer of the base.

        Needs the room of a plain probe. Raises EngineStopped.
        """
        job = StatesJob(self._future())
        self._engine.submit(self._state, job)
        return await job.future

    def wakes(self, expert: ExpertVersion) -> bool:
        """Whether the expert could answer: False where `generate` would raise InvocationMissing."""
        try:
            self._engine.jobs.waking(expert, self.prompt)
        except InvocationMissing:
            return False
        return True

    def drop(self, experts: Seq[ExpertVersion]) -> None:
        """Gives up held probes."""
        self._engine.drop(self._state, experts)

    def prefetch(self, experts: Seq[ExpertVersion]) -> None:
        """Has experts read into the host cache, if there is room, so that they are there when they are asked."""
        self._engine.prefetch(experts)

    async def generate(self, answerer: Answerer, sampling: Sampling) -> AsyncGenerator[Token]:
        """Tokens of the answer. The accept string of an expert that learned one is put before them, not among them.

        Continues from the expert's held probe where there is one; other probes are dropped. Raises InvocationMissing,
        RequestTooLarge, EngineStopped, or what reading the expert's files raised.
        """
        job = self._engine.jobs.answer(self.prompt, answerer, sampling)
        self._engine.submit(self._state, job)
        while True:
            token = await job.next_token()
            yield token
            if token.finish_reason is not None:
                return

    def _future(self) -> "asyncio.Future[Any]":
        return self._state.loop.create_future()

    def close(self) -> None:
        """Frees everything within one step. Safe to call twice, and while something is awaited."""
        self._engine.close(self._state)

    async def __aenter__(self) -> "Session":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
