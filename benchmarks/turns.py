"""How often a round is repeated within the time it may take. Knows nothing of what a round does."""

import time
from collections.abc import Callable, Iterator


def turns(
    most: int, *, minutes: float, at_least: int = 1, clock: Callable[[], float] = time.monotonic
) -> Iterator[int]:
    """0, 1, 2, ... below `most`: first `at_least` of them, then as long as one like the longest so far still fits."""
    started = clock()
    longest = 0.0
    for number in range(most):
        before = clock()
        if number >= at_least and before - started + longest > 60 * minutes:
            return
        yield number
        longest = max(longest, clock() - before)
