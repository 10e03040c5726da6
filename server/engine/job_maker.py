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
from server.errors import NotSelfSelecting, PromptTooLong
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
        self._max_context = base.max_context

    def probe(self, future: "asyncio.Future[Any]", prompt: Prompt, experts: Seq[ExpertVersion]) -> ProbeJob:
        """Raises InvocationMissing, NotSelfSelecting, PromptTooLong, RequestTooLarge or ExpertTooLarge."""
        self._check_fits(experts)
        probes = []
        starts: dict[tuple[tuple[int, ...] | None, IndicatorTokens], int] = {}  # many experts wake up alike
        for expert in experts:
            indicators = self._indicator_tokens(expert)
            alike = expert.invocation_tokens, indicators
            if alike not in starts:
                self._check_context(prompt, indicators.accept, max_new_tokens=0)
                starts[alike] = Waking.of(expert, prompt, indicators.shared).start
            probes.append((Waking(expert, starts[alike]), indicators))
        return ProbeJob(future, probes)

    def logits(self, future: "asyncio.Future[Any]", prompt: Prompt, expert: ExpertVersion) -> LogitsJob:
        """Without an indicator behind the prompt. Raises InvocationMissing."""
        return LogitsJob(future, Waking.of(expert, prompt, ()))

    def waking(self, expert: ExpertVersion, prompt: Prompt) -> Waking:
        """Where an expert that is asked, or answers, wakes up. Raises InvocationMissing."""
        return Waking.of(expert, prompt, self._indicator_tokens(expert).shared if expert.self_selecting else ())

    def answer(self, prompt: Prompt, answerer: Answerer, sampling: Sampling) -> Answer:
        """An answer that has not begun. Raises InvocationMissing, PromptTooLong or RequestTooLarge."""
        if isinstance(answerer, OutputMixture):
            return self._blend(prompt, answerer, sampling)
        generator = sampling.new_generator(self._device)
        self._check_fits(experts_of(answerer))
        if isinstance(answerer, LogitMixture):
            branches = [self._branch(prompt, expert, weight, sampling) for expert, weight in answerer.branches]
            return MixtureJob(branches=branches, sampling=sampling, stop_tokens=self._stop_tokens, generator=generator)
        alone = self._branch(prompt, answerer, 1.0, sampling)
        return GenerateJob(
            waking=alone.waking,
            accept=alone.accept,
            sampling=sampling,
            stop_tokens=self._stop_tokens,
            generator=generator,
        )

    def _blend(self, prompt: Prompt, mixture: OutputMixture, sampling: Sampling) -> BlendJob:
        """The same for experts that compute together. Raises PromptTooLong or RequestTooLarge."""
        assert all(expert.kind == "lora" for expert in mixture.experts), "only plain LoRAs are mixed. This is a bug."
        self._check_fits(mixture.experts)
        accept = self._accept(prompt, mixture.experts[0], sampling)
        return BlendJob(
            mixture=mixture,
            waking=None,
            accept=accept,
            sampling=sampling,
            stop_tokens=self._stop_tokens,
            generator=sampling.new_generator(self._device),
        )

    def _branch(self, prompt: Prompt, expert: ExpertVersion | None, weight: float, sampling: Sampling) -> Branch:
        """Raises InvocationMissing or PromptTooLong."""
        if expert is None:
            return Branch(None, (), weight)
        return Branch(self.waking(expert, prompt), self._accept(prompt, expert, sampling), weight)

    def _accept(self, prompt: Prompt, expert: ExpertVersion, sampling: Sampling) -> tuple[int, ...]:
        """What stands between the prompt and the expert's answer. Raises PromptTooLong."""
        if not expert.answers_after_accept:
            return ()
        accept = self._indicator_tokens(expert).accept
        self._check_context(prompt, accept, max_new_tokens=sampling.max_new_tokens)
        return accept

    def _check_context(self, prompt: Prompt, accept: tuple[int, ...], *, max_new_tokens: int) -> None:
        """The engine has checked prompt and answer alone. Raises PromptTooLong."""
        if len(prompt.tokens) + len(accept) + max_new_tokens > self._max_context:
            raise PromptTooLong(
                prompt_tokens=len(prompt.tokens),
                max_new_tokens=max_new_tokens,
                limit=self._max_context,
                accept_tokens=len(accept),
            )

    def _indicator_tokens(self, expert: ExpertVersion) -> IndicatorTokens:
        """Raises NotSelfSelecting for an expert without indicators."""
        if expert.manifest.indicators is None:
            raise NotSelfSelecting(expert.name)
        return self._chat.indicator_tokens(expert.manifest.indicators)
