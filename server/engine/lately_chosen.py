"""Which experts have lately been chosen, of those that are asked. Knows digests alone."""

from collections import OrderedDict
from collections.abc import Sequence


class LatelyChosen:
    """Remembers `size` experts, the last chosen last. A guess at who will be chosen next: right or wrong, the choice
    is the same."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._digests: OrderedDict[str, None] = OrderedDict()

    def note(self, digest: str) -> None:
        """This expert has been chosen."""
        self._digests[digest] = None
        self._digests.move_to_end(digest)
        if len(self._digests) > self._size:
            self._digests.popitem(last=False)

    def among(self, digests: Sequence[str]) -> frozenset[str]:
        """All of `digests` if there are no more than `size`, else those that are remembered."""
        if len(digests) <= self._size:
            return frozenset(digests)
        return frozenset(self._digests).intersection(digests)
