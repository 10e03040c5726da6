"""Who answers: routers score experts, one pure function decides. Knows no tensors, no text and no HTTP."""

from server.routing.absent import AbsentRouter
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
from server.routing.learned import LearnedRouter
from server.routing.shadow import ShadowPlans
from server.routing.shortlist import ShortlistIndex, Shortlists

__all__ = [
    "AbsentRouter",
    "ChainRouter",
    "Considered",
    "Decision",
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
    "decide",
    "pinned",
    "score",
    "unrouted",
]
