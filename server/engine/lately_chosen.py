"""Which experts have lately been chosen, of those that are asked. Knows digests alone."""

from collections import deque
from collections.abc import Sequence
from itertools import islice

_CHOICES = 24  # who is chosen more seldom costs more while asked than the step that it saves when chosen (2 CPU cores)


class LatelyChosen:
    """Remembers the last choices, of at most `most` experts. A guess at who will be chosen next: right or wrong,
    the choice is the same."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._digests: deque[str] = deque(maxlen=_CHOICES)

    def note(self, digest: str) -> None:
        """This expert has been chosen."""
        self._digests.append(digest)

    def among(self, digests: Sequence[str]) -> frozenset[str]:
        """Those of `digests` that are remembered; all if they are few and too little is remembered to tell."""
        if len(digests) <= self._most and len(self._digests) < _CHOICES:
            return frozenset(digests)
        last_first = dict.fromkeys(reversed(self._digests))
        return frozenset(islice(last_first, self._most)).intersection(digests)
