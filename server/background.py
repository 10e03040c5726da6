"""Threads for work that must not slow down running answers: uploads, checks, publication. Knows nothing of such work.

They come behind all others of the process, where the system lets threads differ (Linux), and while the engine steps
they compute in the breaks between two steps (`server/breaks.py`).
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from expert_store import breathe_by
from server.breaks import PART_SECONDS, Breaks

_NUM_THREADS = 8
_NICENESS = 10

BREAKS = Breaks()  # those of this process's engine

T = TypeVar("T")


def _step_back() -> None:
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # a courtesy: without it everything is done as well
            os.setpriority(os.PRIO_PROCESS, thread, max(os.getpriority(os.PRIO_PROCESS, thread), _NICENESS))
    breathe_by(_breathe)


def _in_breaks(work: Callable[[], T]) -> T:
    BREAKS.start_work()
    _of_thread.computed = time.thread_time()
    try:
        return work()
    finally:
        BREAKS.end_work()


def _breathe() -> None:
    if time.thread_time() - _of_thread.computed >= PART_SECONDS:
        BREAKS.breathe()
        _of_thread.computed = time.thread_time()


_of_thread = threading.local()  # `computed`: its processor time at the beginning of the part it works on
_threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="background", initializer=_step_back)


def begin_in_background(work: Callable[[], T]) -> "Future[T]":
    """Has `work` done some time. What it raises reaches only who asks the future."""
    return _threads.submit(_in_breaks, work)


async def in_background(work: Callable[[], T]) -> T:
    """Runs `work` in a thread and stays until it has ended, even when cancelled: it may be moving files."""
    task = asyncio.wrap_future(begin_in_background(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
