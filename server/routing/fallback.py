"""Lets the pool's fallback expert answer where nobody accepts. Knows plans; nothing of how they decide.

It was not asked, so it has no say in the decision: `fallback`, `reason`, `score` and `considered` are as without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from expert_store import ExpertVersion
from server.engine.types import Branches
from server.model.chat import Prompt
from server.routing.base import Decision, RoutePlan, RoutingSession, Shortlist


@dataclass(frozen=True)
class FallbackPlan:
    """Another plan, with somebody in the base model's place, unless the prompt does not wake them up."""

    plan: RoutePlan
    expert: ExpertVersion

    @property
    def readable(self) -> Sequence[ExpertVersion]:
        return (*self.plan.readable, self.expert)

    def branches(self, shortlist: Shortlist | None) -> Branches:
        """As many: the fallback expert is never asked, and answers when the probes are gone."""
        return self.plan.branches(shortlist)

    async def route(self, prompt: Prompt, session: RoutingSession, shortlist: Shortlist | None) -> Decision:
        decision = await self.plan.route(prompt, session, shortlist)
        return replace(decision, answerer=self.expert) if decision.fallback and session.wakes(self.expert) else decision


def with_fallback(plan: RoutePlan, expert: ExpertVersion | None) -> RoutePlan:
    """The plan itself where the base model is to answer."""
    return plan if expert is None else FallbackPlan(plan, expert)
