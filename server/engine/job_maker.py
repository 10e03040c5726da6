"""Makes what a session gives the engine to do, out of experts, prompts and sampling. Runs on the event loop.

Knows chat format and pool sizes; nothing of steps.
"""

import asyncio
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

from expert_store import ExpertVersion
from server.engine.answerer import Answerer, LogitMixture, OutputMixture, experts_of
from server.engine.blend import BlendJob
from server.engine.jobs import Answer, GenerateJob, LogitsJob, ProbeJob, Waking
from server.engine.mixture import Branch, MixtureJob
from server.errors import NotSelfSelecting
from server.model.base import Base
from server.model.chat import ChatFormat, IndicatorTokens, Prompt
from server.model.sampling import Sampling


class JobMaker:
    """`check_fits` raises RequestTooLarge or ExpertTooLarge for experts that can never be resident together."""

    def __init__(self, base: Base, chat: ChatFormat, *, check_fits: Callable[[Seq[ExpertVersion]], None]) -> None:
        self._chat = chat
        self._check_fits = check_fits
        self._stop_tokens = base.stop_tokens
        self._device = base.device

    def probe(self, future: "asyncio.Future[Any]", prompt: Prompt, experts: Seq[ExpertVersion]) -> ProbeJob:
        """Raises InvocationMissing, NotSelfSelecting, RequestTooLarge or ExpertTooLarge."""
        self._check_fits(experts)
        return ProbeJob(future, [(self.waking(expert, prompt), self._indicator_tokens(expert)) for expert in experts])

    def logits(self, future: "asyncio.Future[Any]", prompt: Prompt, expert: ExpertVersion) -> LogitsJob:
        """Without an indicator behind the prompt. Raises InvocationMissing."""
        return LogitsJob(future, Waking.of(expert, prompt, ()))

    def waking(self, expert: ExpertVersion, prompt: Prompt) -> Waking:
        """Where an expert that is asked, or answers, wakes up. Raises InvocationMissing."""
        return Waking.of(expert, prompt, self._indicator_tokens(expert).shared if expert.self_selecting else ())

    def answer(self, prompt: Prompt, answerer: Answerer, sampling: Sampling) -> Answer:
        """An answer that has not begun. Raises InvocationMissing or RequestTooLarge."""
        if isinstance(answerer, OutputMixture):
            return self._blend(answerer, sampling)
        generator = sampling.new_generator(self._device)
        self._check_fits(experts_of(answerer))
        if isinstance(answerer, LogitMixture):
            branches = [self._branch(prompt, expert, weight) for expert, weight in answerer.branches]
            return MixtureJob(branches=branches, sampling=sampling, stop_tokens=self._stop_tokens, generator=generator)
        alone = self._branch(prompt, answerer, 1.0)
        return GenerateJob(
            waking=alone.waking,
            accept=alone.accept,
            sampling=sampling,
            stop_tokens=self._stop_tokens,
            generator=generator,
        )

    def _blend(self, mixture: OutputMixture, sampling: Sampling) -> BlendJob:
        """The same for experts that compute together. Raises RequestTooLarge."""
        assert all(expert.kind == "lora" for expert in mixture.experts), "only plain LoRAs are mixed. This is a bug."
        self._check_fits(mixture.experts)
        first = mixture.experts[0]
        return BlendJob(
            mixture=mixture,
            waking=None,
            accept=self._indicator_tokens(first).accept if first.answers_after_accept else (),
            sampling=sampling,
            stop_tokens=self._stop_tokens,
            generator=sampling.new_generator(self._device),
        )

    def _branch(self, prompt: Prompt, expert: ExpertVersion | None, weight: float) -> Branch:
        """Raises InvocationMissing."""
        if expert is None:
            return Branch(None, (), weight)
        accept = self._indicator_tokens(expert).accept if expert.answers_after_accept else ()
        return Branch(self.waking(expert, prompt), accept, weight)

    def _indicator_tokens(self, expert: ExpertVersion) -> IndicatorTokens:
        """Raises NotSelfSelecting for an expert without indicators."""
        if expert.manifest.indicators is None:
            raise NotSelfSelecting(expert.name)
        return self._chat.indicator_tokens(expert.manifest.indicators)
