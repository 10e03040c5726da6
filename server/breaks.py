"""The breaks between two steps, in which others than the engine compute. Knows neither what they do nor what a step is.

A step ends with the slowest of its threads, so whoever takes a processor from one of them for a moment takes that
moment from all. Such work therefore waits for the end of a step, and the next step for the work, for a while.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PART_SECONDS = 0.0005  # of processor time: work is not cut up further
_SHARE = 1 / 8  # of a step's time is what the next one waits at most
_MOST_SECONDS = 0.01
_NEXT_SECONDS = 0.0007  # for what follows upon a piece of work: it comes by way of the event loop
_PATIENCE_SECONDS = 0.1  # of a worker, as some steps take long


class Breaks:
    """Shared by whoever runs steps and any number of workers, each in a thread of its own."""

    def __init__(self) -> None:
        lock = threading.Lock()
        self._begins = threading.Condition(lock)  # a break: workers wait for it
        self._work_changes = threading.Condition(lock)  # whoever runs steps waits for it
        self._is_now = True
        self.num_waiting = 0
        self.num_working = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step runs in this block. Behind it is a break; if a worker has waited for that, this waits until nobody
        works any more, or a share of the step's time is over."""
        with self._begins:
            self._is_now = False
        started = time.perf_counter()
        try:
            yield
        finally:
            ended = time.perf_counter()
            with self._begins:
                self._is_now, waited_for = True, self.num_waiting > 0
                self._begins.notify_all()
        if waited_for:
            self._wait_for_workers(until=ended + min(_SHARE * (ended - started), _MOST_SECONDS))

    def _wait_for_workers(self, *, until: float) -> None:
        with self._work_changes:
            while (left := until - time.perf_counter()) > 0:
                busy = self.num_waiting + self.num_working > 0
                changed = self._work_changes.wait(left if busy else min(left, _NEXT_SECONDS))
                if not (busy or changed):
                    return

    def start_work(self) -> None:
        """By a worker. Waits for a break, unless that does not come for long."""
        with self._begins:
            if not self._is_now:
                self.num_waiting += 1
                self._begins.wait_for(lambda: self._is_now, _PATIENCE_SECONDS)
                self.num_waiting -= 1
            self.num_working += 1
            self._work_changes.notify()

    def end_work(self) -> None:
        """By a worker that has started."""
        with self._begins:
            self.num_working -= 1
            self._work_changes.notify()

    def breathe(self) -> None:
        """By a worker that has started, between two parts of its work: the next one waits for a break as well."""
        if not self._is_now:
            self.end_work()
            self.start_work()
