"""Lets equal beginnings be computed once. Knows sequences and blocks; nothing of tensors, sessions or slots.

Keys and values of a token depend on all tokens up to it and on who computed them. So a full block is named by a hash
over the name of the block before it, its own tokens, and the digest of the expert at work in it (none: the base).
Versions of an expert have different digests, and a prompt before an activated expert's wake-up is the base's, whoever
answers: chain probes, repeated system prompts and the turns of a chat all find what was computed before.
"""

import hashlib
from array import array

from server.engine.kv_cache import BlockPool
from server.engine.scheduler import Sequence


class PrefixCache:
    """Looks beginnings up in the block pool and puts finished blocks there; not `enabled`, it does neither."""

    def __init__(self, blocks: BlockPool, *, enabled: bool) -> None:
        self._blocks = blocks
        self._enabled = enabled
        self._num_reused = 0  # tokens

    def adopt(self, sequence: Sequence) -> None:
        """Gives a new sequence the blocks of its beginning that are remembered; they count as computed.

        Tokens behind which logits are wanted stay to be computed.
        """
        if not self._enabled:
            return
        size = self._blocks.block_tokens
        self._name(sequence, sequence.num_reusable // size)
        num_found = self._blocks.adopt(sequence.table, sequence.keys)
        del sequence.keys[num_found:]
        sequence.computed = num_found * size
        self._num_reused += sequence.computed

    def collect_reused(self) -> int:
        """Tokens taken over since the last call."""
        reused, self._num_reused = self._num_reused, 0
        return reused

    def remember(self, sequence: Sequence) -> None:
        """Names the blocks that have become full, unless one of them lacks what is still to be copied."""
        if not self._enabled or (sequence.fork is not None and sequence.fork.copy is not None):
            return
        if sequence.fork is not None and not sequence.keys:
            sequence.keys = sequence.fork.parent.keys[: sequence.fork.num_shared // self._blocks.block_tokens]
        first = len(sequence.keys)
        self._name(sequence, sequence.computed // self._blocks.block_tokens)
        for index in range(first, len(sequence.keys)):
            self._blocks.remember(sequence.table.blocks[index], sequence.keys[index])

    def _name(self, sequence: Sequence, num_blocks: int) -> None:
        """Extends the sequence's keys to this many blocks."""
        size, activation = self._blocks.block_tokens, sequence.activation_start
        for index in range(len(sequence.keys), num_blocks):
            end = (index + 1) * size
            before = sequence.keys[-1] if sequence.keys else b""
            owner = b""
            if activation is not None and end > activation:  # of two in one block, the tokens between are another's
                owner = f"{sequence.digest} {max(0, activation - end + size)}".encode()
            own = array("q", sequence.tokens[end - size : end]).tobytes()
            sequence.keys.append(hashlib.sha256(b"\0".join((before, owner, own))).digest())
