"""Who owns which KV block, and what finished blocks hold. Knows counts, indices and keys; nothing of tensors or text.

A session reserves the most blocks it can ever hold before it starts, so that a running request never has to be
preempted and admitted ones always finish. Sequences of one session share the blocks of a common prefix. Full blocks
have a key that names their content (`prefix`); once nobody holds them they stay, least recently used first to go, until
their room is needed, and whoever begins with the same tokens takes them over instead of computing them.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Reservation:
    """A session's claim: at most `limit` blocks; `held` counts how many of its tables hold each."""

    limit: int
    held: Counter[int] = field(default_factory=Counter)


@dataclass
class BlockTable:
    """The blocks of one sequence, in order."""

    reservation: Reservation
    blocks: list[int] = field(default_factory=list)


class BlockPool:
    """Hands out blocks against reservations, counts the tables that hold each, and remembers what full ones hold."""

    def __init__(self, *, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # remembered, held by nobody; least recently used first
        self._holders = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._by_key: dict[bytes, int] = {}
        self._num_reserved = 0

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - len(self._free) - len(self._idle)

    @property
    def num_reserved(self) -> int:
        """Blocks that somebody may come to hold."""
        return self._num_reserved

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
        assert not reservation.held, "a reservation was released while it held blocks. This is a bug."
        self._num_reserved -= reservation.limit
        reservation.limit = 0

    def grow(self, table: BlockTable, num_tokens: int) -> None:
        """Makes room for `num_tokens` tokens in all."""
        while len(table.blocks) < self.blocks_for(num_tokens):
            self._hold(table, self._take())

    def adopt(self, table: BlockTable, keys: Sequence[bytes]) -> int:
        """Puts the remembered blocks of the first keys into an empty table; returns how many there were."""
        assert not table.blocks, "only an empty table can begin with remembered blocks. This is a bug."
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            self._idle.pop(block, None)
            self._hold(table, block)
        return len(table.blocks)

    def remember(self, block: int, key: bytes) -> None:
        """The block is full and holds what the key names. Of two blocks with one content the first is remembered."""
        if self._keys[block] is None and key not in self._by_key:
            self._keys[block] = key
            self._by_key[key] = block

    def fork(self, table: BlockTable, num_tokens: int) -> tuple[BlockTable, tuple[int, int] | None]:
        """A table that shares the first `num_tokens` tokens of another.

        Full blocks are shared. A last block that is only partly filled gets a copy of its own, returned as
        (source, target) for whoever owns the tensors.
        """
        num_full = num_tokens // self.block_tokens
        forked = BlockTable(table.reservation, table.blocks[:num_full])
        table.reservation.held.update(forked.blocks)  # blocks it holds already, so it cannot outgrow itself
        for block in forked.blocks:
            self._holders[block] += 1
        if num_tokens % self.block_tokens == 0:
            return forked, None
        target = self._take()
        self._hold(forked, target)
        return forked, (table.blocks[num_full], target)

    def free(self, table: BlockTable) -> None:
        """Gives up a sequence's blocks; those others hold stay, and those remembered can be taken over.

        The last ones are forgotten first, for a beginning is of more use than an end.
        """
        held, holders = table.reservation.held, self._holders
        for block in reversed(table.blocks):
            if held[block] == 1:
                del held[block]
            else:
                held[block] -= 1
            holders[block] -= 1
            if holders[block] == 0:
                if self._keys[block] is None:
                    self._free.append(block)
                else:
                    self._idle[block] = None
        table.blocks.clear()

    def check_integrity(self, tables: list[BlockTable]) -> None:
        """Asserts that exactly the blocks of these tables are held. For tests and idle moments."""
        expected = [0] * self.num_blocks
        for table in tables:
            for block in table.blocks:
                expected[block] += 1
        assert expected == self._holders, "block reference counts are off. This is a bug."
        unheld = [block for block, count in enumerate(expected) if count == 0]
        assert sorted([*self._free, *self._idle]) == unheld, "the list of unheld blocks is off. This is a bug."
        remembered = {block: key for block, key in enumerate(self._keys) if key is not None}
        assert {block: key for key, block in self._by_key.items()} == remembered, "the keys are off. This is a bug."
        assert not any(self._keys[block] for block in self._free), "a free block is remembered. This is a bug."

    def _hold(self, table: BlockTable, block: int) -> None:
        held = table.reservation.held
        assert block in held or len(held) < table.reservation.limit, "a session outgrew its reservation. This is a bug."
        held[block] += 1
        self._holders[block] += 1
        table.blocks.append(block)

    def _take(self) -> int:
        """An unheld block; reservations see to it that there is one."""
        if self._free:
            return self._free.pop()
        block, _ = self._idle.popitem(last=False)
        key = self._keys[block]
        assert key is not None, "an idle block holds nothing known. This is a bug."
        del self._by_key[key]
        self._keys[block] = None
        return block
