"""Waits for what others are about to do, so that no test guesses how long that takes; what never comes true fails."""

import asyncio
import time
from collections.abc import Callable

_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.001


def until(true: Callable[[], bool]) -> None:
    """For what other threads and processes do."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(_LOOK_SECONDS)


async def until_true(true: Callable[[], bool]) -> None:
    """`until`, for what this event loop's tasks do as well."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(_LOOK_SECONDS)
