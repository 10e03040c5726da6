"""Threads that come behind the others, and work that is not left half done."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable

import pytest

from expert_store import breathe
from server import background, breaks
from server.background import BREAKS, _step_back, begin_in_background, in_background
from server.breaks import PART_SECONDS
from tests.support.waiting import until_true

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads of a process cannot differ")
async def test_background_threads_come_behind_all_others() -> None:
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    theirs = await in_background(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert theirs > own if own < 10 else theirs == own  # far enough behind as it is
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
    await in_a_thread_of_its_own(_step_back)
    assert asked[0] >= os.getpriority(os.PRIO_PROCESS, 0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers wait for a break as long as it takes."""
    monkeypatch.setattr(breaks, "_PATIENCE_SECONDS", 60.0)


@pytest.mark.usefixtures("patient")
async def test_work_waits_for_the_end_of_a_step() -> None:
    done = threading.Event()
    with BREAKS.step():
        begin_in_background(done.set)
        assert not await asyncio.to_thread(done.wait, 0.05)
    assert await asyncio.to_thread(done.wait, 10)


@pytest.mark.usefixtures("patient")
async def test_work_that_has_begun_stops_for_a_step_where_it_can() -> None:
    may_go_on, went_on = await begun_work(lambda: _compute(2 * PART_SECONDS))
    with BREAKS.step():
        may_go_on.set()
        assert not await asyncio.to_thread(went_on.wait, 0.05)
    assert await asyncio.to_thread(went_on.wait, 10)


@pytest.mark.usefixtures("patient")
async def test_work_that_has_hardly_begun_does_not_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PART_SECONDS", 1.0)
    may_go_on, went_on = await begun_work(lambda: None)
    with BREAKS.step():
        may_go_on.set()
        assert await asyncio.to_thread(went_on.wait, 10)


@pytest.mark.usefixtures("patient")
async def test_what_no_background_does_never_waits() -> None:
    went_on = threading.Event()

    def work() -> None:
        _compute(2 * PART_SECONDS)
        breathe()
        went_on.set()

    with BREAKS.step():
        threading.Thread(target=work, daemon=True).start()
        assert await asyncio.to_thread(went_on.wait, 10)


async def test_work_that_fails_has_ended() -> None:
    """A step waits for no one who has gone."""

    def fail() -> None:
        raise ValueError("on purpose")

    await until_true(lambda: BREAKS.num_working == 0)  # what other tests began
    with pytest.raises(ValueError, match="on purpose"):
        await in_background(fail)
    assert BREAKS.num_working == 0


async def begun_work(compute: Callable[[], None]) -> tuple[threading.Event, threading.Event]:
    """Sets the second event when it may go on, as the first one says, and has computed and breathed."""
    begun, may_go_on, went_on = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_go_on.wait(10)
        compute()
        breathe()
        went_on.set()

    begin_in_background(work)
    assert await asyncio.to_thread(begun.wait, 10)
    return may_go_on, went_on


async def in_a_thread_of_its_own(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.to_thread(thread.join, 10)


def _compute(seconds: float) -> None:
    """Of processor time."""
    begun = time.thread_time()
    while time.thread_time() < begun + seconds:
        pass
