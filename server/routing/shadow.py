"""Scores other routers for a prompt that one has decided. Whatever goes wrong with them stays with them.

Shadows run behind the decision and before the answer, one after another, on the request's own session: what they cost
is time until the first token, which `Shadow.seconds` says.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from expert_store import ExpertVersion, StoreError
from server.engine.types import Branches
from server.errors import RelayError
from server.model.chat import Prompt
from server.routing.base import Decision, RoutePlan, RoutingSession, ScoringRouter, Shadow, Shortlist
from server.routing.fallback import with_fallback

log = structlog.get_logger()
_BUG = "it failed: the server's log says why"


@dataclass(frozen=True)
class ShadowPlans:
    """The routers to be scored for one request; those that are not ready with the reason instead of a plan."""

    plans: Mapping[ScoringRouter, RoutePlan | str]

    @classmethod
    def of(
        cls,
        names: Sequence[ScoringRouter],
        plan: Callable[[ScoringRouter], RoutePlan],
        fallback: ExpertVersion | None = None,
    ) -> "ShadowPlans":
        """`plan` makes a router's, or raises what keeps it from being ready. `fallback` answers where nobody accepts;
        None is the base model."""
        return cls({name: _planned(name, plan, fallback) for name in names})

    @property
    def readable(self) -> list[ExpertVersion]:
        return [version for plan in self._ready() for version in plan.readable]

    def branches(self, shortlist: Shortlist | None) -> list[Branches]:
        """Of asking alone: a shadow gives no answer, so it needs no room for one."""
        return [replace(plan.branches(shortlist), mixed=0) for plan in self._ready()]

    def without_room(self, reason: str) -> "ShadowPlans":
        """None of them can run, because the engine could never hold what they need."""
        return ShadowPlans({name: plan if isinstance(plan, str) else reason for name, plan in self.plans.items()})

    async def score(
        self, decided: Decision, prompt: Prompt, session: RoutingSession, shortlist: Shortlist | None
    ) -> tuple[Shadow, ...]:
        """One shadow a router, in their order. What is held afterwards is what `decided` needs."""
        shadows = []
        for name, plan in self.plans.items():
            shadow = await _score(name, plan, prompt, session, shortlist)
            if shadow.decision is not None:
                session.drop([e.asked_as for e in shadow.decision.experts if e not in decided.experts])
            shadows.append(shadow)
        return tuple(shadows)

    def _ready(self) -> list[RoutePlan]:
        return [plan for plan in self.plans.values() if not isinstance(plan, str)]


def _planned(
    name: ScoringRouter, plan: Callable[[ScoringRouter], RoutePlan], fallback: ExpertVersion | None
) -> RoutePlan | str:
    try:
        return with_fallback(plan(name), fallback)
    except (RelayError, StoreError) as error:
        return error.message
    except Exception:
        log.exception("shadow_failed")
        return _BUG


async def _score(
    name: ScoringRouter, plan: RoutePlan | str, prompt: Prompt, session: RoutingSession, shortlist: Shortlist | None
) -> Shadow:
    if isinstance(plan, str):
        return Shadow(name, 0.0, None, plan)
    started = time.perf_counter()
    decision: Decision | None = None
    problem: str | None = None
    try:
        decision = await plan.route(prompt, session, shortlist)
    except (RelayError, StoreError) as error:
        problem = error.message
    except Exception:
        log.exception("shadow_failed", router=name)
        problem = _BUG
    return Shadow(name, time.perf_counter() - started, decision, problem)
