"""The sequential self-selection chain (SEE, arXiv 2504.06664). Knows whom to ask next; nothing of how that is done.

The answer is always that of the plain chain: the first expert, in chain order, that accepts. To get there with
little work, experts are asked a window at a time; within it the activated ones go first, all together, since they
share the prompt's keys and values, and then only those plain ones that stand before the first that accepted. A plain
expert with a gate is asked through that, as an activated one.

An expert that cannot be asked (its files are damaged, or the prompt leaves no room for its accept string) accepts
nothing and keeps nobody else from being asked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from expert_store import Catalog, ExpertVersion, StoreError
from server.engine.types import Branches, IndicatorLogits
from server.errors import ExpertTooLarge, PromptTooLong, RequestTooLarge
from server.model.chat import Prompt
from server.routing.base import Considered, Decision, Prober, RouterStatus, Shortlist

log = structlog.get_logger()


@dataclass(frozen=True)
class Verdict:
    """An asked expert, its score and whether that reaches its threshold; a `problem` if it could not be asked."""

    expert: ExpertVersion
    score: float
    accepted: bool
    problem: str | None = None

    @property
    def considered(self) -> Considered:
        return Considered(self.expert.name, self.expert.version, self.score, self.accepted, self.problem)


def score(logits: IndicatorLogits) -> float:
    """sigmoid(accept - reject): the probability of accepting, given that the expert says either (SEE, section 3).

    NaN, which accepts nothing, where the expert overflows on this prompt and one of both is no number.
    """
    if not (math.isfinite(logits.accept) and math.isfinite(logits.reject)):
        return math.nan
    difference = logits.accept - logits.reject
    if difference >= 0:
        return 1 / (1 + math.exp(-difference))
    return math.exp(difference) / (1 + math.exp(difference))


def decide(verdicts: Sequence[Verdict], catalog_generation: int) -> Decision:
    """The first verdict, in chain order, that accepts; the base model if none does."""
    considered = tuple(verdict.considered for verdict in verdicts)
    for verdict in verdicts:
        if verdict.accepted:
            return Decision("chain", verdict.expert, verdict.score, False, "accepted", considered, catalog_generation)
    return Decision("chain", None, None, True, "no_acceptance", considered, catalog_generation)


class ChainRouter:
    """Asks at most `window` experts before looking at their answers; at most `plain_window` plain ones at once."""

    def __init__(self, *, window: int = 8, plain_window: int = 2) -> None:
        self._window = window
        self._plain_window = plain_window
        self._told: set[tuple[str, str]] = set()  # problems that the log has already

    def status(self, catalog: Catalog) -> RouterStatus:  # noqa: ARG002 - with nobody to ask, the base answers
        """Always ready."""
        return RouterStatus("chain")

    def plan(self, catalog: Catalog) -> "ChainPlan":
        return ChainPlan(self, catalog)

    def branches(self, catalog: Catalog, shortlist: Shortlist | None = None) -> Branches:
        """The most probes one request can hold at a time."""
        experts = _candidates(catalog, shortlist)
        num_plain = sum(expert.asked_as.kind == "lora" for expert in experts)
        return Branches(activated=min(len(experts) - num_plain, self._window), plain=min(num_plain, self._plain_window))

    async def route(self, catalog: Catalog, prober: Prober, shortlist: Shortlist | None = None) -> Decision:
        """Asks down the chain, or its shortlisted part, until somebody accepts. The accepted expert's probe stays held,
        a gate's does not."""
        experts = _candidates(catalog, shortlist)
        verdicts: list[Verdict] = []
        for start in range(0, len(experts), self._window):
            end = start + self._window
            prober.prefetch([expert.asked_as for expert in experts[end : end + self._window]])
            verdicts += await self._ask_window(experts[start:end], prober)
            if any(verdict.accepted for verdict in verdicts):
                break
        return replace(decide(verdicts, catalog.generation), shortlist=shortlist)

    async def _ask_window(self, window: Sequence[ExpertVersion], prober: Prober) -> list[Verdict]:
        """Verdicts in chain order, of all that had to be asked."""
        place = {expert.digest: number for number, expert in enumerate(window)}
        activated = [expert for expert in window if expert.asked_as.kind == "alora"]
        verdicts = await self._ask(activated, prober)
        first = next((v.expert for v in verdicts if v.accepted), None)
        before = window if first is None else window[: place[first.digest]]
        plain = [expert for expert in before if expert.asked_as.kind == "lora"]
        for start in range(0, len(plain), self._plain_window):
            answers = await self._ask(plain[start : start + self._plain_window], prober)
            verdicts += answers
            if any(verdict.accepted for verdict in answers):
                break
        verdicts.sort(key=lambda verdict: place[verdict.expert.digest])
        _drop_losers(verdicts, prober)
        return verdicts

    async def _ask(self, experts: Sequence[ExpertVersion], prober: Prober) -> list[Verdict]:
        """Verdicts of all, asked together; where that fails, half of them at a time, until it is known who is the
        cause."""
        if not experts:
            return []
        try:
            answers = await prober.score([expert.asked_as for expert in experts])
        except (StoreError, PromptTooLong, RequestTooLarge, ExpertTooLarge) as error:
            if len(experts) == 1:
                return [self._problem(experts[0], error.message)]
            half = len(experts) // 2
            return [*await self._ask(experts[:half], prober), *await self._ask(experts[half:], prober)]
        scores = [score(logits) for logits in answers]
        verdicts = [
            Verdict(expert, value, value >= expert.manifest.threshold)
            for expert, value in zip(experts, scores, strict=True)
        ]
        prober.drop([v.expert.asked_as for v in verdicts if not v.accepted or v.expert.gate is not None])
        return verdicts

    def _problem(self, expert: ExpertVersion, said: str) -> Verdict:
        if (expert.digest, said) not in self._told:
            self._told.add((expert.digest, said))
            log.warning("expert_cannot_be_asked", expert=expert.ref, problem=said)
        return Verdict(expert, math.nan, False, said)


@dataclass(frozen=True)
class ChainPlan:
    """The chain as one catalog has it."""

    router: ChainRouter
    catalog: Catalog

    @property
    def readable(self) -> tuple[ExpertVersion, ...]:
        return self.catalog.chain_experts

    def branches(self, shortlist: Shortlist | None) -> Branches:
        return self.router.branches(self.catalog, shortlist)

    async def route(self, prompt: Prompt, session: Prober, shortlist: Shortlist | None) -> Decision:  # noqa: ARG002
        return await self.router.route(self.catalog, session, shortlist)


def _candidates(catalog: Catalog, shortlist: Shortlist | None) -> tuple[ExpertVersion, ...]:
    return catalog.chain_experts if shortlist is None else shortlist.experts


def _drop_losers(verdicts: Sequence[Verdict], prober: Prober) -> None:
    """Frees the probes of experts that accepted behind the first that did."""
    accepted = [verdict.expert for verdict in verdicts if verdict.accepted]
    prober.drop(accepted[1:])
