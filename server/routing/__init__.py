"""Who answers: routers score experts, one pure function decides. Knows no tensors, no text and no HTTP."""

from server.routing.base import Considered, Decision, Prober, Reason, RouterName, Shortlist, pinned, unrouted
from server.routing.chain import ChainRouter, decide, score
from server.routing.shortlist import ShortlistIndex, Shortlists

__all__ = [
    "ChainRouter",
    "Considered",
    "Decision",
    "Prober",
    "Reason",
    "RouterName",
    "Shortlist",
    "ShortlistIndex",
    "Shortlists",
    "decide",
    "pinned",
    "score",
    "unrouted",
]
