"""Who waits for whom between two steps, and how long at most."""

import threading
import time
from collections.abc import Callable

import pytest

from server import breaks
from server.breaks import Breaks
from tests.support.waiting import until


@pytest.fixture
def generous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's patience ends, so that what ends has ended for another reason."""
    for name in ("_MOST_SECONDS", "_PATIENCE_SECONDS"):
        monkeypatch.setattr(breaks, name, 60.0)
    monkeypatch.setattr(breaks, "_SHARE", 1e6)


def work(shared: Breaks, do: Callable[[], object] = bool) -> None:
    shared.start_work()
    try:
        do()
    finally:
        shared.end_work()


def begin(do: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("generous")
def test_before_the_first_step_work_starts_at_once() -> None:
    shared, started, happened = Breaks(), time.monotonic(), list[str]()
    work(shared, lambda: happened.append("worked"))
    assert happened == ["worked"]
    assert time.monotonic() - started < 10, "it waited for a break"


@pytest.mark.usefixtures("generous")
def test_the_next_step_waits_for_work_that_has_waited_for_the_last() -> None:
    shared, happened = Breaks(), list[str]()

    def do() -> None:
        time.sleep(0.05)
        happened.append("worked")

    with shared.step():
        worker = begin(lambda: work(shared, do))
        until(lambda: shared.num_waiting == 1)
        happened.append("stepped")
    happened.append("next step")
    worker.join(10)
    assert happened == ["stepped", "worked", "next step"]


@pytest.mark.usefixtures("generous")
def test_it_waits_for_what_follows_soon_upon_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaks, "_NEXT_SECONDS", 60.0)
    shared, happened = Breaks(), list[str]()

    def last() -> None:
        happened.append("second")
        monkeypatch.setattr(breaks, "_NEXT_SECONDS", 0.001)

    def two() -> None:
        work(shared, lambda: happened.append("first"))
        time.sleep(0.05)
        work(shared, last)

    with shared.step():
        worker = begin(two)
        until(lambda: shared.num_waiting == 1)
    happened.append("next step")
    worker.join(10)
    assert happened == ["first", "second", "next step"]


def test_it_waits_for_a_share_of_the_steps_time_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaks, "_PATIENCE_SECONDS", 60.0)
    shared, may_end, ended = Breaks(), threading.Event(), threading.Event()

    def do() -> None:
        may_end.wait(30)
        ended.set()

    with shared.step():
        worker = begin(lambda: work(shared, do))
        until(lambda: shared.num_waiting == 1)
        time.sleep(0.04)
        stepped = time.monotonic()
    waited = time.monotonic() - stepped
    assert not ended.is_set(), "it waited until the work had ended"
    assert waited >= 0.04 / 8
    until(lambda: shared.num_working == 1)  # it may have to be woken yet
    may_end.set()
    assert ended.wait(10)
    worker.join(10)


@pytest.mark.usefixtures("generous")
def test_it_does_not_wait_for_work_that_waited_for_nobody() -> None:
    shared, may_end = Breaks(), threading.Event()
    worker = begin(lambda: work(shared, lambda: may_end.wait(10)))
    until(lambda: shared.num_working == 1)
    with shared.step():
        pass
    assert shared.num_working == 1
    may_end.set()
    worker.join(10)


@pytest.mark.usefixtures("generous")
def test_in_a_break_work_goes_on_and_beside_a_step_it_stops() -> None:
    shared, parts, may_go_on = Breaks(), list[str](), threading.Event()

    def do() -> None:
        shared.breathe()
        parts.append("in the break")
        may_go_on.wait(10)
        shared.breathe()
        parts.append("behind the step")

    worker = begin(lambda: work(shared, do))
    until(lambda: bool(parts))
    with shared.step():
        may_go_on.set()
        until(lambda: shared.num_waiting == 1)
        assert parts == ["in the break"]
    worker.join(10)
    assert parts == ["in the break", "behind the step"]


def test_a_long_step_does_not_hold_up_work_for_ever() -> None:
    shared, started = Breaks(), time.monotonic()
    with shared.step():
        begin(lambda: work(shared)).join(10)
        assert 0.1 <= time.monotonic() - started < 10


@pytest.mark.usefixtures("generous")
def test_a_step_that_fails_has_ended() -> None:
    shared, worked = Breaks(), threading.Event()

    def step() -> None:
        with shared.step():
            begin(lambda: work(shared, worked.set))
            until(lambda: shared.num_waiting == 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step()
    assert worked.wait(10)
