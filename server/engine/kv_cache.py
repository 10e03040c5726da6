"""Who owns which KV block. Knows counts and indices; nothing of tensors, experts or text.

A session reserves the most blocks it can ever hold before it starts, so that a running request never has to be
preempted and admitted ones always finish. Sequences of one session share the blocks of a common prefix.
"""

from dataclasses import dataclass, field


@dataclass
class Reservation:
    """A session's claim: at most `limit` blocks, `used` of them taken."""

    limit: int
    used: int = 0


@dataclass
class BlockTable:
    """The blocks of one sequence, in order."""

    reservation: Reservation
    blocks: list[int] = field(default_factory=list)


class BlockPool:
    """Hands out blocks against reservations and counts the sequences that share each."""

    def __init__(self, *, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free = list(range(num_blocks - 1, -1, -1))
        self._sharers = [0] * num_blocks
        self._num_reserved = 0

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def try_reserve(self, num_blocks: int) -> Reservation | None:
        """None while other sessions hold too much."""
        if self._num_reserved + num_blocks > self.num_blocks:
            return None
        self._num_reserved += num_blocks
        return Reservation(limit=num_blocks)

    def release(self, reservation: Reservation) -> None:
        """Gives a claim back; its tables must have been freed."""
        assert reservation.used == 0, "a reservation was released while it held blocks. This is a bug."
        self._num_reserved -= reservation.limit
        reservation.limit = 0

    def grow(self, table: BlockTable, num_tokens: int) -> None:
        """Makes room for `num_tokens` tokens in all."""
        while len(table.blocks) < self.blocks_for(num_tokens):
            table.blocks.append(self._take(table.reservation))

    def fork(self, table: BlockTable, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        """A table that shares the first `num_tokens` tokens of another.

        Full blocks are shared. A last block that is only partly filled gets a copy of its own, returned as
        (source, target) for whoever owns the tensors.
        """
        num_full = num_tokens // self.block_tokens
        forked = BlockTable(table.reservation, table.blocks[:num_full])
        for block in forked.blocks:
            self._sharers[block] += 1
        if num_tokens % self.block_tokens == 0:
            return forked, None
        target = self._take(table.reservation)
        forked.blocks.append(target)
        return forked, (table.blocks[num_full], target)

    def free(self, table: BlockTable) -> None:
        """Gives up a sequence's blocks; those still shared stay."""
        for block in table.blocks:
            self._sharers[block] -= 1
            if self._sharers[block] == 0:
                self._free.append(block)
                table.reservation.used -= 1
        table.blocks.clear()

    def check_integrity(self, tables: list[BlockTable]) -> None:
        """Asserts that exactly the blocks of these tables are taken. For tests and idle moments."""
        expected = [0] * self.num_blocks
        for table in tables:
            for block in table.blocks:
                expected[block] += 1
        assert expected == self._sharers, "block reference counts are off. This is a bug."
        assert sorted(self._free) == [b for b, n in enumerate(expected) if n == 0], "free list is off. This is a bug."

    def _take(self, reservation: Reservation) -> int:
        assert reservation.used < reservation.limit, "a session outgrew its reservation. This is a bug."
        reservation.used += 1
        block = self._free.pop()
        self._sharers[block] = 1
        return block
