"""What attention works on: the paged cache, where segments lie in it, one layer's call. Computes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Legend: T tokens in the step, H query heads, K key/value heads, D head width, C block_tokens (capacity of a block).


@dataclass(frozen=True)
class Borrowed:
    """The tokens of a sequence before token `end`, as far back as that token's block reaches, are read in `block`,
    another sequence's. Its own block has only those behind."""

    block: int
    end: int


@dataclass(frozen=True)
class SegmentSpan:
    """Where one segment lies: queries are step tokens [first_token, first_token + num_queries), the first of them at
    `position` in its sequence, whose keys lie in `blocks` in order, but for what is `borrowed`."""

    first_token: int
    num_queries: int
    position: int
    blocks: Sequence[int]
    borrowed: Borrowed | None = None

    @property
    def num_keys(self) -> int:
        return self.position + self.num_queries


class PagedKV:
    """Keys and values of every layer, [blocks, 2 K, C, D] each: K heads of keys, then K of values.

    Says nothing about who owns a block.
    """

    def __init__(
        self,
        *,
        geometry: "KVGeometry",
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_tokens = block_tokens
        self.num_blocks = num_blocks
        self.num_kv_heads = geometry.num_kv_heads
        shape = (num_blocks, 2 * geometry.num_kv_heads, block_tokens, geometry.head_width)
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(geometry.num_layers)]

    @cached_property
    def pointers(self) -> Tensor:
        """Where each layer lies in memory, which never changes."""
        return torch.tensor([layer.data_ptr() for layer in self.layers])

    @property
    def device(self) -> torch.device:
        return self.layers[0].device

    def place(self, span: SegmentSpan, position: int) -> int:
        """Where a layer's [blocks * 2 K * C, D] holds head 0 of this token of the span's sequence."""
        block, inside = divmod(position, self.block_tokens)
        return span.blocks[block] * 2 * self.num_kv_heads * self.block_tokens + inside


@dataclass(frozen=True)
class KVGeometry:
    """What the cache must hold for one token."""

    num_layers: int
    num_kv_heads: int
    head_width: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_width * dtype.itemsize


@dataclass(frozen=True)
class Call:
    """One layer's attention call."""

    query_THD: Tensor
    kv: Tensor  # [blocks, 2 K, C, D]
    scale: float
    window: int | None
    softcap: float | None
