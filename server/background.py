"""Threads for work that must not slow down running answers: uploads, checks, publication. Knows nothing of such work.

A step of the engine waits for the slowest of its threads, so one that loses its processor for a moment delays every
stream. These threads therefore come behind all others of the process, where the system lets threads differ (Linux), and
while somebody is being answered they rest eight times as long as they have computed, a millisecond at a time.
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

from expert_store import breathe_by

_NUM_THREADS = 8
_NICENESS = 10
_COMPUTED_SECONDS = 0.001  # before a rest
_REST = 8.0  # times as long as was computed
_MAX_REST_SECONDS = 0.1  # however long there was no occasion for one

T = TypeVar("T")

_is_somebody_answered: Callable[[], bool] = bool  # nobody is


@contextmanager
def giving_way_while(is_somebody_answered: Callable[[], bool]) -> Iterator[None]:
    """In this block these threads rest between pieces of work whenever that is so; it is asked from any of them."""
    global _is_somebody_answered
    _is_somebody_answered = is_somebody_answered
    try:
        yield
    finally:
        _is_somebody_answered = bool


def _step_back() -> None:
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # a courtesy: without it everything is done as well
            os.setpriority(os.PRIO_PROCESS, thread, max(os.getpriority(os.PRIO_PROCESS, thread), _NICENESS))
    _of_thread.rests = _Rests()
    breathe_by(_of_thread.rests.take_if_due)


class _Rests:
    """One thread's."""

    def __init__(self) -> None:
        self._taken = time.thread_time()  # processor time at the end of the last one

    def take_if_due(self) -> None:
        if time.thread_time() - self._taken >= _COMPUTED_SECONDS:
            self.take()

    def take(self) -> None:
        if _is_somebody_answered():
            time.sleep(min(_REST * (time.thread_time() - self._taken), _MAX_REST_SECONDS))
        self._taken = time.thread_time()


def _and_rest(work: Callable[[], T]) -> T:
    """The rest comes before the result: whoever waits for that has the next piece of work at once."""
    try:
        return work()
    finally:
        _of_thread.rests.take()


_of_thread = threading.local()
_threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="background", initializer=_step_back)


def begin_in_background(work: Callable[[], T]) -> "Future[T]":
    """Has `work` done some time. What it raises reaches only who asks the future."""
    return _threads.submit(_and_rest, work)


async def in_background(work: Callable[[], T]) -> T:
    """Runs `work` in a thread and stays until it has ended, even when cancelled: it may be moving files."""
    task = asyncio.wrap_future(begin_in_background(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
