"""Continuous batching over one model: sequences, KV blocks, expert slots, steps. Knows no HTTP and no metrics."""

from server.engine.engine import Engine, EngineConfig, Session
from server.engine.types import (
    Branches,
    EngineObserver,
    IndicatorLogits,
    Occupancy,
    PoolEvent,
    StepStats,
    Token,
)
from server.model.sampling import Sampling

__all__ = [
    "Branches",
    "Engine",
    "EngineConfig",
    "EngineObserver",
    "IndicatorLogits",
    "Occupancy",
    "PoolEvent",
    "Sampling",
    "Session",
    "StepStats",
    "Token",
]
