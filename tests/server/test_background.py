"""Threads that come behind the others, and work that is not left half done."""

import asyncio
import os
import sys
import threading

import pytest

from server.background import _step_back, begin_in_background, in_background

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
