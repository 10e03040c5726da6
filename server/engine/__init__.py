"""Continuous batching over one model: sequences, KV blocks, expert slots, steps. Knows no HTTP and no metrics."""

from server.engine.answerer import Answerer, LogitMixture, OutputMixture, Weighted
from server.engine.engine import Engine, EngineConfig
from server.engine.session import Session
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
    "Answerer",
    "Branches",
    "Engine",
    "EngineConfig",
    "EngineObserver",
    "IndicatorLogits",
    "LogitMixture",
    "Occupancy",
    "OutputMixture",
    "PoolEvent",
    "Sampling",
    "Session",
    "StepStats",
    "Token",
    "Weighted",
]
