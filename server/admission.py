"""Who may come in, and how many are where. Knows numbers and names; nothing of prompts, engines or HTTP."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.errors import TooBusy
from server.metrics import LoadedExperts

_LONGEST_RETRY_SECONDS = 60
_SMOOTHING = 0.1


class Admission:
    """A permit or TooBusy, at once. Lives on the event loop's thread.

    `max_running` requests are computed at a time (the engine sees to that), `max_queue` more may wait for their turn.
    """

    def __init__(self, *, max_running: int, max_queue: int) -> None:
        self._max_running = max_running
        self._max_queue = max_queue
        self._num_admitted = 0
        self._mean_seconds = 1.0

    @contextmanager
    def permit(self) -> Iterator[None]:
        """One place, kept until the block ends. Raises TooBusy."""
        if self._num_admitted >= self._max_running + self._max_queue:
            raise TooBusy(waiting=self._max_queue, retry_after_seconds=self._retry_after_seconds())
        self._num_admitted += 1
        started = time.perf_counter()
        try:
            yield
        finally:
            self._num_admitted -= 1
            self._mean_seconds += _SMOOTHING * (time.perf_counter() - started - self._mean_seconds)

    def _retry_after_seconds(self) -> int:
        """About when the queue will have moved by half its length."""
        expected = self._mean_seconds * max(1.0, self._max_queue / (2 * self._max_running))
        return min(_LONGEST_RETRY_SECONDS, max(1, math.ceil(expected)))


class Activity:
    """Which requests wait and which run, and on which experts; tells `publish` at every change."""

    def __init__(self, publish: Callable[[int, int, LoadedExperts], None]) -> None:
        self._publish = publish
        self.waiting = Group(self._tell)
        self.running = Group(self._tell)

    def _tell(self) -> None:
        experts = LoadedExperts(running=self.running.experts, waiting=self.waiting.experts)
        self._publish(self.waiting.size, self.running.size, experts)


class Group:
    """Requests in one stage."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._names: Counter[str] = Counter()
        self.size = 0

    @property
    def experts(self) -> frozenset[str]:
        return frozenset(+self._names)

    @contextmanager
    def join(self, expert: str | None = None) -> Iterator["Seat"]:
        """One more request, until the block ends; `expert` is the one it is here for."""
        seat = Seat(self._names, self._tell)
        self.size += 1
        seat.use(*([] if expert is None else [expert]))
        try:
            yield seat
        finally:
            self.size -= 1
            seat.use()


class Seat:
    """A request's place in a group: it counts once for every expert that answers it."""

    def __init__(self, names: Counter[str], tell: Callable[[], None]) -> None:
        self._names = names
        self._tell = tell
        self._experts: tuple[str, ...] = ()

    def use(self, *experts: str) -> None:
        """The experts this place counts for from now on, if any."""
        self._names.subtract(self._experts)
        self._names.update(experts)
        self._experts = experts
        self._tell()
