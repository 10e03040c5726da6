"""Who answers: routers score experts, one pure function decides. Knows no tensors, no text and no HTTP."""

from server.routing.base import Considered, Decision, Prober, Reason, RouterName, pinned, unrouted
from server.routing.chain import ChainRouter, decide, score

__all__ = [
    "ChainRouter",
    "Considered",
    "Decision",
    "Prober",
    "Reason",
    "RouterName",
    "decide",
    "pinned",
    "score",
    "unrouted",
]
