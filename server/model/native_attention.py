"""Deals a step's segments out to the attention kernel: long ones in pieces, forks of one prompt together. Knows blocks;
nothing of tensors' contents or of how attention is computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from server.model.chat import common_prefix_length
from server.model.native import Kernels, NativeSpans
from server.model.paged_kv import Borrowed, Call, PagedKV, SegmentSpan

_NATIVE_QUERIES = 32  # a kernel's share of a long segment; a block of keys is made ready once for each
_FORK_QUERIES = 4  # segments up to this many queries read the blocks they share together
_FAMILY = 16  # segments at most that do


class NativeGroup:
    """Segments of any shape; in 0.25 ms where scaled-dot-product attention takes 0.9 (200 queries, 2 CPU cores)."""

    def __init__(self, segments: Sequence[SegmentSpan], kv: PagedKV, kernels: Kernels) -> None:
        self._kernels = kernels
        pieces = [piece for segment in segments for piece in _pieces(segment)]
        families = list(families_of(pieces, kv, torch.get_num_threads()))
        self.spans = NativeSpans(
            [
                (s.first_token, s.num_queries, s.position, _read_blocks(s, kv.block_tokens))
                for family, _ in families
                for s in family
            ],
            [(len(family), num_shared) for family, num_shared in families],
        )

    def attend(self, call: Call, output_THD: Tensor) -> None:
        assert call.softcap is None, "no model of the fused family caps its scores. This is a bug."
        self._kernels.attend(call.query_THD, call.kv, output_THD, self.spans, call.scale, call.window)


def _pieces(span: SegmentSpan) -> list[SegmentSpan]:
    """A segment as short ones, which are dealt out to threads and reach only as far as their own last key."""
    if span.num_queries <= _NATIVE_QUERIES:
        return [span]
    return [
        replace(
            span,
            first_token=span.first_token + done,
            num_queries=min(_NATIVE_QUERIES, span.num_queries - done),
            position=span.position + done,
        )
        for done in range(0, span.num_queries, _NATIVE_QUERIES)
    ]


def _read_blocks(span: SegmentSpan, block_tokens: int) -> Sequence[int]:
    """Its blocks, the borrowed one before the one it stands in for."""
    if span.borrowed is None:
        return span.blocks
    place = span.borrowed.end // block_tokens
    return [*span.blocks[:place], span.borrowed.block, *span.blocks[place:]]


def families_of(spans: Sequence[SegmentSpan], kv: PagedKV, threads: int) -> Iterator[tuple[list[SegmentSpan], int]]:
    """Short segments that begin with the same tokens, and with how many: forks of one prompt, or of one remembered.

    Only blocks that every query of the family sees whole count as shared; those that borrow from one block share all
    that lies before the end of that. A family is one thread's work, so there are enough of them for all threads, if
    need be of one segment each.
    """
    alike: dict[int | Borrowed, list[SegmentSpan]] = {}
    for span in spans:
        if span.num_queries <= _FORK_QUERIES:
            alike.setdefault(span.borrowed or span.blocks[0], []).append(span)
        else:
            yield [span], 0 if span.borrowed is None else span.borrowed.end
    for beginning, together in alike.items():
        size = max(1, min(_FAMILY, len(together) * kv.num_kv_heads // (2 * threads)))
        for first in range(0, len(together), size):
            family = together[first : first + size]
            if isinstance(beginning, Borrowed):
                yield family, beginning.end
                continue
            tables = [tuple(span.blocks[: span.position // kv.block_tokens]) for span in family]
            num_common = _num_common(tables)
            if 2 * num_common >= max(len(table) for table in tables) > 0 and len(family) > 1:
                yield family, num_common * kv.block_tokens
            else:
                yield from (([span], 0) for span in family)


def _num_common(tables: Sequence[tuple[int, ...]]) -> int:
    """How many blocks all of them begin with in common: as many as the first and the last in order."""
    return common_prefix_length(min(tables), max(tables))


class NativeCopies:
    """The first tokens of some blocks, put into others, in one pass."""

    def __init__(self, copies: Sequence[tuple[int, int, int]], kernels: Kernels) -> None:
        self._kernels = kernels
        self.table = torch.tensor(copies)

    def make(self, cache: Tensor) -> None:
        self._kernels.copy_tokens(cache, self.table)
