"""Threads for work that must not slow down running answers: uploads, checks, publication. Knows nothing of such work.

A step of the engine waits for the slowest of its threads, so one that loses its processor for a moment delays every
stream. These threads therefore come behind all others of the process, where the system lets threads differ (Linux).
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

_NUM_THREADS = 8
_NICENESS = 10

T = TypeVar("T")


def _step_back() -> None:
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # a courtesy: without it everything is done as well
            os.setpriority(os.PRIO_PROCESS, thread, max(os.getpriority(os.PRIO_PROCESS, thread), _NICENESS))


_threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="background", initializer=_step_back)


def begin_in_background(work: Callable[[], None]) -> None:
    """Has `work` done some time; it must see to its own errors."""
    _threads.submit(work)


async def in_background(work: Callable[[], T]) -> T:
    """Runs `work` in a thread and stays until it has ended, even when cancelled: it may be moving files."""
    task = asyncio.wrap_future(_threads.submit(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
