"""Holds back an engine's steps until others have come as far as a test needs: what comes together is no chance then."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from server.engine import Engine
from server.engine import engine as module
from server.engine.scheduler import StepPlan, plan_step


@contextmanager
def steps_only_when(may_step: Callable[[], bool]) -> Iterator[None]:
    """In this block no engine steps but when that is so; its thread asks whenever there is something new."""

    def plan(*sequences: Any, **options: Any) -> StepPlan:
        return plan_step(*sequences, **options) if may_step() else StepPlan()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "plan_step", plan)
        yield


@contextmanager
def together(engine: Engine, num_sessions: int) -> Iterator[None]:
    """In this block the engine begins once so many sessions have each asked for something."""
    complete = False

    def may_step() -> bool:
        nonlocal complete
        complete = complete or sum(bool(state.jobs) for state in engine._active) >= num_sessions
        return complete

    with steps_only_when(may_step):
        yield
