"""What the engine thread has to tell event loops, told once a step. Knows callbacks and loops; nothing of sessions.

Waking an event loop costs a system call and a fight for the interpreter; a step that gives sixteen requests a token
wakes their loop once.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence


class Outbox:
    """Owned by the engine thread, which puts callbacks in and sends them before it does anything that takes long."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop, list[Callable[[], object]]] = defaultdict(list)

    def put(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        self._waiting[loop].append(callback)

    def send(self) -> None:
        """Has every loop run its callbacks in order; a loop that has been closed has nobody left to tell."""
        for loop, callbacks in self._waiting.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_run, callbacks)
        self._waiting.clear()


def _run(callbacks: Sequence[Callable[[], object]]) -> None:
    for callback in callbacks:
        callback()
