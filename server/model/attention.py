"""Attention of a mixed batch over a paged KV cache, plugged into transformers' attention interface.

Knows blocks, segments and masks; nothing of sequences' owners, experts or sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from server.errors import BaseModelError
from server.model.native import Kernels
from server.model.native_attention import NativeCopies, NativeGroup
from server.model.paged_kv import Call, PagedKV, SegmentSpan

# Legend: T tokens in the step, H query heads, K key/value heads, G = H / K, D head width, C block_tokens (capacity of
# a block), B segments in a group, n query tokens of a segment, N blocks of a segment, S = N * C keys.

IMPLEMENTATION = "relay_paged"
_GROUPED_QUERIES = 16  # segments up to this many queries share one batched product
_SCORES = 1 << 26  # in fp32 at a time; a quarter of a gibibyte
_LARGEST = 2.0**60  # of a key or value; a score sums so many products as a head is wide
_LIKE_LENGTH = 0.6  # of the longest in the group; less padding would make more groups


@dataclass
class AttentionPlan:
    """All index tensors of one step, made once and read by every layer."""

    kv: PagedKV
    place_T: Tensor  # where a layer's [blocks * 2 K * C, D] holds head 0 of each token
    copies: "_Copies | NativeCopies | None"
    groups: Sequence["Group | NativeGroup"]
    long_segments: list["_LongSegment"]

    @cached_property
    def _place_TK(self) -> Tensor:
        """[T * 2 K]: where every head of each token is held; kernels count for themselves."""
        heads = torch.arange(2 * self.kv.num_kv_heads, device=self.kv.device) * self.kv.block_tokens
        return (self.place_T[:, None] + heads).flatten()

    def attend(
        self,
        layer: int,
        query_THD: Tensor,
        kv_TKD: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """[T, H, D]: writes the step's keys and values (`kv_TKD` holds K heads of each) into the cache, makes the
        step's copies, then lets every segment attend to its own sequence."""
        cache = self.kv.layers[layer]
        cache.view(-1, cache.shape[-1]).index_copy_(0, self._place_TK, _harmless(kv_TKD.flatten(0, 1)))
        return self.read(layer, query_THD, scale=scale, window=window, softcap=softcap)

    def read(
        self, layer: int, query_THD: Tensor, *, scale: float, window: int | None = None, softcap: float | None = None
    ) -> Tensor:
        """[T, H, D]: as `attend`, for a step whose keys and values have been written."""
        if self.copies is not None:
            self.copies.make(self.kv.layers[layer])
        call = Call(query_THD, self.kv.layers[layer], scale, window, softcap)
        output_THD = torch.empty_like(query_THD, memory_format=torch.contiguous_format)
        for group in self.groups:
            group.attend(call, output_THD)
        for segment in self.long_segments:
            segment.attend(call, output_THD)
        return output_THD


def plan_attention(
    segments: Sequence[SegmentSpan],
    kv: PagedKV,
    kernels: Kernels | None = None,
    *,
    copies: Sequence[tuple[int, int, int]] = (),
    few_launches: bool | None = None,
) -> AttentionPlan:
    """With kernels all keys and values are read where they lie. Without, those of short segments of like shape are
    gathered for batched products, and long segments go one by one. With `few_launches` (by default on a GPU) all
    segments of like size are batched, queries padded as well as keys.

    Between writing and reading, the first n tokens of block `source` are copied to `target` for each (source, target,
    n) of `copies`.
    """
    assert kernels is not None or all(s.borrowed is None for s in segments), "only kernels borrow. This is a bug."
    groups: list[Group] | list[NativeGroup]
    if few_launches is None:
        few_launches = kv.device.type == "cuda"
    if kernels is None and few_launches:
        groups = [Group.of(members, kv) for members in _alike(segments, kv.block_tokens, pad_queries=True)]
        long = []
    elif kernels is None:
        short = [s for s in segments if s.num_queries <= _GROUPED_QUERIES]
        groups = [Group.of(members, kv) for members in _alike(short, kv.block_tokens)]
        long = [_LongSegment(s, kv) for s in segments if s.num_queries > _GROUPED_QUERIES]
    else:
        groups = [NativeGroup(segments, kv, kernels)]
        long = []
    return AttentionPlan(
        kv=kv,
        place_T=_places(segments, kv),
        copies=_planned(copies, kv, kernels) if copies else None,
        groups=groups,
        long_segments=long,
    )


def _planned(copies: Sequence[tuple[int, int, int]], kv: PagedKV, kernels: Kernels | None) -> "_Copies | NativeCopies":
    return _Copies(copies, kv) if kernels is None else NativeCopies(copies, kernels)


class _Copies:
    """The first n tokens of some blocks, put into others."""

    def __init__(self, copies: Sequence[tuple[int, int, int]], kv: PagedKV) -> None:
        first = (
            torch.arange(2 * kv.num_kv_heads, device=kv.device)[:, None] * kv.block_tokens
        )  # of each head in a block
        size = 2 * kv.num_kv_heads * kv.block_tokens
        offsets = {n: (first + torch.arange(n, device=kv.device)).flatten() for n in {n for *_, n in copies}}
        self._source, self._target = (torch.cat([offsets[c[2]] + c[end] * size for c in copies]) for end in (0, 1))

    def make(self, cache: Tensor) -> None:
        rows = cache.view(-1, cache.shape[-1])
        rows.index_copy_(0, self._target, rows.index_select(0, self._source))


def _places(segments: Sequence[SegmentSpan], kv: PagedKV) -> Tensor:
    return torch.tensor(
        [kv.place(segment, p) for segment in segments for p in range(segment.position, segment.num_keys)],
        device=kv.device,
    )


def _alike(segments: Sequence[SegmentSpan], block_tokens: int, *, pad_queries: bool = False) -> list[list[SegmentSpan]]:
    """Groups of equally many queries (with `pad_queries`: of as many up to the next power of two) and of like length:
    padding to the longest adds at most two thirds."""

    def kind(segment: SegmentSpan) -> int:
        return (segment.num_queries - 1).bit_length() if pad_queries else segment.num_queries

    groups: list[list[SegmentSpan]] = []
    longest = 0
    for segment in sorted(segments, key=lambda s: (kind(s), s.num_keys), reverse=True):
        num_blocks = -(-segment.num_keys // block_tokens)
        fits = groups and kind(groups[-1][0]) == kind(segment) and num_blocks >= _LIKE_LENGTH * longest
        if not fits:
            groups.append([])
            longest = num_blocks
        groups[-1].append(segment)
    return [sorted(group, key=lambda s: s.first_token) for group in groups]


def paged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - the plan carries the masks
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    attention_plan: AttentionPlan | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D].

    Writes the step's keys and values into the cache, then lets every segment attend to its own sequence.
    """
    if attention_plan is None:
        raise BaseModelError(f"{type(module).__name__} does not hand its keyword arguments to the attention function")
    output_THD = attention_plan.attend(
        module.layer_idx,
        query[0].transpose(0, 1),
        torch.cat((key[0], value[0])).transpose(0, 1),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return output_THD[None], None


class Group:
    """Segments attended to together: their keys are padded to as many blocks, their queries to as many as the most by
    repeating the last.

    table_BN holds each segment's blocks (any block behind its last one), position_Bn where its queries stand, `tokens`
    where they are in the step. `sdpa` attends by torch's own operator, whose kernels for GPUs read keys and values in
    their own format and sum up in fp32; without it the products are made one by one, all in fp32.
    """

    def __init__(
        self, tokens: slice | Tensor, table_BN: Tensor, position_Bn: Tensor, kv: PagedKV, *, sdpa: bool | None = None
    ) -> None:
        self._tokens = tokens
        self._num_segments, self._num_queries = position_Bn.shape
        self._sdpa = kv.device.type == "cuda" if sdpa is None else sdpa
        num_rows = 2 * kv.num_kv_heads
        heads = torch.arange(num_rows, device=kv.device).view(2, 1, kv.num_kv_heads, 1)
        # gather[0 or 1, b, k, i]: the row of C * D numbers with head k of keys or values in table[b][i]
        self._gather = (table_BN[None, :, None, :] * num_rows + heads).flatten()
        self._biases = _Biases(position_Bn, table_BN.shape[1] * kv.block_tokens)

    @classmethod
    def of(cls, members: Sequence[SegmentSpan], kv: PagedKV, *, sdpa: bool | None = None) -> "Group":
        """Of these segments."""
        num_blocks = max(-(-s.num_keys // kv.block_tokens) for s in members)
        num_queries = max(s.num_queries for s in members)
        queries = [[min(i, s.num_queries - 1) for i in range(num_queries)] for s in members]
        tokens = [s.first_token + i for s, of_one in zip(members, queries, strict=True) for i in of_one]
        in_order = tokens == list(range(tokens[0], tokens[0] + len(tokens)))
        padded = [list(s.blocks[:num_blocks]) + [0] * (num_blocks - len(s.blocks)) for s in members]
        positions = [[s.position + i for i in of_one] for s, of_one in zip(members, queries, strict=True)]
        return cls(
            slice(tokens[0], tokens[0] + len(tokens)) if in_order else torch.tensor(tokens, device=kv.device),
            torch.tensor(padded, device=kv.device),
            torch.tensor(positions, device=kv.device),
            kv,
            sdpa=sdpa,
        )

    def attend(self, call: Call, output_THD: Tensor) -> None:
        num_heads, width = call.query_THD.shape[1:]
        num_kv_heads = call.kv.shape[1] // 2
        group = num_heads // num_kv_heads
        query = call.query_THD[self._tokens].reshape(self._num_segments, self._num_queries, num_kv_heads, group, width)
        rows = call.kv.view(call.kv.shape[0] * call.kv.shape[1], -1).index_select(0, self._gather)
        keys, values = rows.view(2, self._num_segments, num_kv_heads, -1, width).unbind()
        sdpa = self._sdpa and call.softcap is None
        bias = self._biases.get(call.window, call.kv.dtype if sdpa else torch.float32)
        attend = _by_sdpa if sdpa else _in_fp32
        mixed_BKGnD = attend(query.permute(0, 2, 3, 1, 4), keys, values, bias, call)
        output_THD[self._tokens] = mixed_BKGnD.permute(0, 3, 1, 2, 4).reshape(-1, num_heads, width)


def _by_sdpa(query_BKGnD: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, bias_B11nS: Tensor, call: Call) -> Tensor:
    """Heads that share keys stand one behind the other, as further queries; or have a copy of the keys each, where that
    is less than a copy of the mask."""
    num_segments, num_kv_heads, group, num_queries, width = query_BKGnD.shape
    mask_BKGnS = bias_B11nS.expand(-1, num_kv_heads, group, -1, -1)
    if num_queries <= width:
        shape, keys, values = (num_segments, num_kv_heads, group * num_queries), key_BKSD, value_BKSD
    else:
        shape = (num_segments, num_kv_heads * group, num_queries)
        keys, values = (x.repeat_interleave(group, dim=1) for x in (key_BKSD, value_BKSD))
    query, mask = query_BKGnD.reshape(*shape, width), mask_BKGnS.reshape(*shape, -1)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=call.scale).view_as(query_BKGnD)


def _in_fp32(query_BKGnD: Tensor, key_BKSD: Tensor, value_BKSD: Tensor, bias_B11nS: Tensor, call: Call) -> Tensor:
    """bf16 scores would be off by up to 1/256 of their size, which is enough to change answers. Some queries at a time,
    so that no more scores are in memory than need be."""
    num_segments, num_kv_heads, group = query_BKGnD.shape[:3]
    keys, values = (rows.float().flatten(0, 1) for rows in (key_BKSD, value_BKSD))
    size = max(1, _SCORES // (num_segments * num_kv_heads * group * keys.shape[1]))
    mixed = []
    for part_BKGnD, bias in zip(*(torch.split(x, size, dim=3) for x in (query_BKGnD, bias_B11nS)), strict=True):
        shape = (num_segments, num_kv_heads, group, part_BKGnD.shape[3])
        query = (part_BKGnD.float() * call.scale).reshape(num_segments * num_kv_heads, -1, keys.shape[2])
        scores = torch.bmm(query, keys.transpose(1, 2))
        if call.softcap is not None:
            scores = call.softcap * torch.tanh(scores / call.softcap)
        weights = scores.view(*shape, -1).add_(bias).softmax(dim=-1)
        mixed.append(torch.bmm(weights.view_as(scores), values).view(*shape, -1).to(call.query_THD.dtype))
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=3)


class _Biases:
    """Additive masks [B, 1, 1, n, S] of a group, one for each sliding window a model uses."""

    def __init__(self, position_Bn: Tensor, num_keys: int) -> None:
        self._position_Bn = position_Bn
        self._num_keys = num_keys
        self._made: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def get(self, window: int | None, dtype: torch.dtype) -> Tensor:
        if (window, dtype) not in self._made:
            allowed = allowed_keys(self._position_Bn, self._num_keys, window)
            bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)
            self._made[window, dtype] = bias[:, None, None]
        return self._made[window, dtype]


def allowed_keys(position: Tensor, num_keys: int, window: int | None) -> Tensor:
    """[..., n] query positions -> [..., n, S]: True where the key is not ahead and, if there is a window, less than
    `window` tokens behind."""
    distance = position[..., None] - torch.arange(num_keys, device=position.device)
    allowed = distance >= 0
    return allowed if window is None else allowed & (distance < window)


@dataclass
class _LongSegment:
    """A prefill chunk: one scaled-dot-product call over its own sequence's keys."""

    span: SegmentSpan
    kv: PagedKV
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    @cached_property
    def _blocks(self) -> Tensor:
        return torch.tensor(self.span.blocks[: -(-self.span.num_keys // self.kv.block_tokens)], device=self.kv.device)

    def attend(self, call: Call, output_THD: Tensor) -> None:
        span = self.span
        tokens = slice(span.first_token, span.first_token + span.num_queries)
        output_THD[tokens] = attend_segment(
            call.query_THD[tokens],
            *self._sequence(call.kv),
            mask=self._mask(call.window),
            scale=call.scale,
            softcap=call.softcap,
        )

    def _sequence(self, cache: Tensor) -> tuple[Tensor, Tensor]:
        """[S, K, D] of keys and of values, in order, without the unused tail of the last block."""
        blocks = cache.index_select(0, self._blocks)
        keys, values = blocks.transpose(1, 2).flatten(0, 1)[: self.span.num_keys].chunk(2, dim=1)
        return keys, values

    def _mask(self, window: int | None) -> Tensor:
        if window not in self._masks:
            position = torch.arange(self.span.position, self.span.num_keys, device=self.kv.device)
            self._masks[window] = allowed_keys(position, self.span.num_keys, window)
        return self._masks[window]


def attend_segment(
    query_nHD: Tensor,
    key_SKD: Tensor,
    value_SKD: Tensor,
    *,
    mask: Tensor,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """[n, H, D]: one segment's attention by itself; also the reference the grouped path is tested against."""
    group = query_nHD.shape[1] // key_SKD.shape[1]
    query = query_nHD.transpose(0, 1)
    key = key_SKD.repeat_interleave(group, dim=1).transpose(0, 1)
    value = value_SKD.repeat_interleave(group, dim=1).transpose(0, 1)
    if softcap is None:
        mixed = F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask, scale=scale)[0]
    else:
        scores = softcap * torch.tanh((query @ key.transpose(1, 2)).float() * scale / softcap)
        mixed = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1).to(value.dtype) @ value
    return mixed.transpose(0, 1)


def _no_mask(*_: Any, **__: Any) -> None:
    """The plan carries the masks, so transformers need not build any."""


def _harmless(kv: Tensor) -> Tensor:
    """What is left in a block is scored by its next owner, in the unused tail, and then weighs nothing: no number there
    may make a score that is none, as NaN times 0 and infinity less infinity are."""
    return kv.nan_to_num(0.0, _LARGEST, -_LARGEST).clamp_(-_LARGEST, _LARGEST)


AttentionInterface.register(IMPLEMENTATION, paged_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
