"""Where long work on files lets others go first: between pieces of about a millisecond. Knows nobody who would.

A thread that nobody told to breathe works on without a pause.
"""

import threading
from collections.abc import Callable

_of_thread = threading.local()


def breathe_by(pause: Callable[[], None]) -> None:
    """From now on `pause` is called, in this thread, between two pieces of work; it may sleep."""
    _of_thread.pause = pause


def breathe() -> None:
    """To be called by whatever takes long, after every piece."""
    pause: Callable[[], None] | None = getattr(_of_thread, "pause", None)
    if pause is not None:
        pause()
