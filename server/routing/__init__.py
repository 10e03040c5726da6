"""Who answers: routers score experts, one pure function decides. Knows no tensors, no text and no HTTP."""

from server.routing.base import (
    Considered,
    Decision,
    Prober,
    Reason,
    RoutePlan,
    Router,
    RouterName,
    RouterStatus,
    RoutingSession,
    ScoringRouter,
    Shadow,
    Shortlist,
    pinned,
    unrouted,
)
from server.routing.chain import ChainRouter, decide, score
from server.routing.fallback import with_fallback
from server.routing.gradient import GradientPlan, GradientRouter, base_adapter, find_pool
from server.routing.learned import LearnedRouter, SlotRoom
from server.routing.shadow import ShadowPlans
from server.routing.shortlist import ShortlistIndex, Shortlists

__all__ = [
    "ChainRouter",
    "Considered",
    "Decision",
    "GradientPlan",
    "GradientRouter",
    "LearnedRouter",
    "Prober",
    "Reason",
    "RoutePlan",
    "Router",
    "RouterName",
    "RouterStatus",
    "RoutingSession",
    "ScoringRouter",
    "Shadow",
    "ShadowPlans",
    "Shortlist",
    "ShortlistIndex",
    "Shortlists",
    "SlotRoom",
    "base_adapter",
    "decide",
    "find_pool",
    "pinned",
    "score",
    "unrouted",
    "with_fallback",
]
