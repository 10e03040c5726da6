"""Stand-ins for the module `time` where what is tested reads it: how fast this machine is then decides nothing."""

import time
from collections.abc import Callable

_PATIENCE_SECONDS = 60.0


class FakeTime:
    """Stands still unless somebody moves it or sleeps, and counts how often it was read."""

    def __init__(self) -> None:
        self.now = 100.0
        self.num_reads = 0

    def perf_counter(self) -> float:
        self.num_reads += 1
        return self.now

    monotonic = perf_counter

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class HeldTime:
    """Real, but for a phase of so many seconds, which it does not let end before enough has happened in it, unless that
    never does."""

    def __init__(self) -> None:
        self._most = 0.0
        self._enough: Callable[[], bool] = lambda: True

    def begin_phase(self, seconds: float, enough: Callable[[], bool]) -> None:
        self._most, self._enough = time.perf_counter() + seconds / 2, enough

    def perf_counter(self) -> float:
        now = time.perf_counter()
        held = self._most < now < self._most + _PATIENCE_SECONDS and not self._enough()
        return self._most if held else now
