"""Threads that come behind the others, and work that is not left half done."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from expert_store import breathe
from server.background import _REST, _step_back, begin_in_background, giving_way_while, in_background

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads of a process cannot differ")
async def test_background_threads_come_behind_all_others() -> None:
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert await in_background(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())) > own
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


async def test_what_the_work_raises_reaches_whoever_waits() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_background(lambda: 1 / 0)


async def test_cancelled_work_is_waited_for() -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait(10)
        ended.set()

    task = asyncio.create_task(in_background(work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_begun_work_is_done_some_time() -> None:
    done = threading.Event()
    begin_in_background(done.set)
    assert await asyncio.to_thread(done.wait, 10)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads of a process cannot differ")
async def test_a_process_that_stands_far_behind_already_can_work_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def refused(*wanted: int) -> None:
        asked.append(wanted[-1])
        raise PermissionError("only root may come forward")

    monkeypatch.setattr(os, "setpriority", refused)
    _step_back()
    assert asked[0] >= os.getpriority(os.PRIO_PROCESS, 0)


@pytest.fixture
def answering() -> Iterator[threading.Event]:
    """Set while somebody is being answered."""
    event = threading.Event()
    with giving_way_while(event.is_set):
        yield event


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of every rest that a thread of the background has taken."""
    taken = []

    def sleep(seconds: float, really: Callable[[float], None] = time.sleep) -> None:
        if threading.current_thread().name.startswith("background"):
            taken.append(seconds)
        really(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    return taken


async def test_work_rests_while_somebody_is_answered(answering: threading.Event, rests: list[float]) -> None:
    await in_background(_twenty_pieces)
    assert sum(rests) == 0
    answering.set()
    computed = await in_background(_twenty_pieces)
    assert sum(rests) >= _REST * computed
    assert max(rests) < _REST * computed / 4, "it rested once instead of after every piece"


async def test_short_pieces_of_work_rest_one_by_one(answering: threading.Event, rests: list[float]) -> None:
    answering.set()
    for _ in range(20):
        await in_background(lambda: _compute(0.0004))
    assert len(rests) == 20
    assert min(rests) > _REST * 0.0004


async def test_work_that_fails_rests_too(answering: threading.Event, rests: list[float]) -> None:
    def fail() -> None:
        _compute(0.003)
        raise ValueError("on purpose")

    answering.set()
    with pytest.raises(ValueError, match="on purpose"):
        await in_background(fail)
    assert sum(rests) > _REST * 0.003


async def test_who_nobody_told_to_breathe_never_rests(
    answering: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering.set()
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it rested"))
    assert await asyncio.to_thread(_twenty_pieces) > 0


def _twenty_pieces() -> float:
    """Seconds of processor time that twenty pieces of two milliseconds took, without what falling asleep takes."""
    computed = 0.0
    for _ in range(20):
        begun = time.thread_time()
        _compute(0.002)
        computed += time.thread_time() - begun
        breathe()
    return computed


def _compute(seconds: float) -> None:
    """Of processor time."""
    begun = time.thread_time()
    while time.thread_time() < begun + seconds:
        pass
