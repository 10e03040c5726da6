"""Turns a step plan into tensors and runs the model once. Knows model and cache; nothing of sessions or sampling."""

from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from server.engine.scheduler import Segment, StepPlan
from server.errors import BaseModelError
from server.model.attention import plan_attention
from server.model.base import Base
from server.model.decode_graphs import DecodeGraphs, Recorder
from server.model.fused import FusedDecoder, fusible
from server.model.generic import GenericDecoder
from server.model.logits import Logits, Wanted
from server.model.lora import LoraArenas, arena_maker
from server.model.lora_plan import Blend, Slots, plan_lora
from server.model.native import Kernels, applies_to
from server.model.paged_kv import Borrowed, KVGeometry, PagedKV, SegmentSpan
from server.model.states import StateSums

_CHECK_TOKENS = 24
# Root mean square difference to transformers' own logits, relative to their spread, that rounding can explain (in bf16
# transformers itself is off by up to 0.17 from fp32); an architecture that computes something else is off by about 1.
_CHECK_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 4e-2}


class Runner:
    """Owns the model's weights, arenas and cache tensors. Takes the model over, after which it only runs here."""

    def __init__(
        self,
        base: Base,
        *,
        kv_memory_bytes: int,
        block_tokens: int,
        num_slots: int,
        slot_rank: int,
        kernels: Kernels | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """`recorder`: steps that only decode are run as it records them; without, as any other step."""
        self._device = base.device
        applies = fusible(base.model.config) and applies_to(next(base.model.parameters()))
        self._kernels = kernels if applies else None
        tokens = _check_sequence(base)
        with torch.inference_mode():
            expected, geometry = _reference_run(base, tokens)
        num_blocks = max(1, kv_memory_bytes // (geometry.bytes_per_token(base.dtype) * block_tokens))
        self.kv = PagedKV(
            geometry=geometry,
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            dtype=base.dtype,
            device=base.device,
        )
        self._dense = num_slots if base.device.type == "cuda" else None
        self._decoder = _new_decoder(base, num_slots=num_slots, slot_rank=slot_rank, kernels=self._kernels)
        with torch.inference_mode():
            self._check(base, tokens, expected)
        self._graphs = (
            None
            if recorder is None
            else DecodeGraphs(self._decoder, self.kv, recorder, num_layers=geometry.num_layers, num_slots=num_slots)
        )

    @property
    def arenas(self) -> LoraArenas:
        return self._decoder.arenas

    @property
    def borrows(self) -> bool:
        """Whether a segment may read tokens in another sequence's block instead of in a copy."""
        return self._kernels is not None and isinstance(self._decoder, FusedDecoder) and not self._decoder.slides

    def run(self, plan: StepPlan) -> Logits:
        """One forward pass; the logits that segments want, in plan order."""
        spans, tokens, positions, slots_T = _lay_out(plan.segments)
        if self._graphs is not None and _only_decodes(plan):
            logits_WV = self._graphs.run(tokens, spans, slots_T)
            if logits_WV is not None:
                return Logits(logits_WV, torch.empty(0, 2))
        wanted = _wanted(spans, plan.segments, self._device)
        copies = [(copy.source, copy.target, copy.num_tokens) for copy in plan.copies]
        watched = [
            (span, segment.sequence.states)
            for span, segment in zip(spans, plan.segments, strict=True)
            if segment.sequence.states is not None
        ]
        sums = StateSums([(span.first_token, span.first_token + span.num_queries) for span, _ in watched])
        logits = self._forward(spans, tokens, positions, slots_T, wanted, copies, sums if watched else None)
        for index, (span, states) in enumerate(watched):
            states.add(sums.of(index), span.num_queries)
        return logits

    def _forward(
        self,
        spans: list[SegmentSpan],
        tokens: list[int],
        positions: list[int],
        slots_T: Seq[Slots | Blend | None],
        wanted: Wanted,
        copies: Seq[tuple[int, int, int]] = (),
        states: StateSums | None = None,
    ) -> Logits:
        return self._decoder.forward(
            torch.tensor(tokens, device=self._device),
            torch.tensor(positions, device=self._device),
            plan_attention(spans, self.kv, self._kernels, copies=copies),
            plan_lora(slots_T, device=self._device, native=self._kernels is not None, dense_slots=self._dense),
            wanted,
            states,
        )

    def _check(self, base: Base, tokens: list[int], expected: Tensor) -> None:
        """Raises BaseModelError unless this architecture computes here what it computes in transformers."""
        half = len(tokens) // 2
        blocks = list(range(-(-len(tokens) // self.kv.block_tokens)))
        if len(blocks) > self.kv.num_blocks:
            raise BaseModelError(
                f"the KV cache holds {self.kv.num_blocks} blocks: start the server with more --kv-memory"
            )
        for start, end in ((0, half), (half, len(tokens))):
            spans = [SegmentSpan(0, end - start, start, blocks)]
            count = end - start
            wanted = _places([count - 1], [], [], self._device)
            logits = self._forward(spans, tokens[start:end], list(range(start, end)), [None] * count, wanted)
        error = float((logits.all_WV[0].float() - expected).square().mean().sqrt() / expected.std())
        if not error < _CHECK_TOLERANCE[base.dtype]:
            raise BaseModelError(
                f"{base.source}: architecture {base.model.config.model_type!r} does not give the same logits here as "
                f"in transformers (relative difference {error:.2g}), so it cannot be served"
            )


def _new_decoder(
    base: Base, *, num_slots: int, slot_rank: int, kernels: Kernels | None
) -> FusedDecoder | GenericDecoder:
    like = next(base.model.parameters())
    new_arena = arena_maker(base.spec.linears, num_slots=num_slots, slot_rank=slot_rank, like=like, kernels=kernels)
    if fusible(base.model.config):
        return FusedDecoder(base.model, new_arena, kernels, in_int8=base.in_int8)
    return GenericDecoder(base.model, list(base.spec.linears), new_arena)


def _lay_out(
    segments: list[Segment],
) -> tuple[list[SegmentSpan], list[int], list[int], list[Slots | Blend | None]]:
    """Spans, token ids, positions and slots of each step token."""
    spans: list[SegmentSpan] = []
    tokens: list[int] = []
    positions: list[int] = []
    slots_T: list[Slots | Blend | None] = []
    for segment in segments:
        count = segment.end - segment.start
        blocks = segment.sequence.table.blocks
        spans.append(SegmentSpan(len(tokens), count, segment.start, blocks, _borrowed(segment)))
        tokens += segment.sequence.tokens[segment.start : segment.end]
        positions += range(segment.start, segment.end)
        slots_T += [segment.slots] * count
    return spans, tokens, positions, slots_T


def _borrowed(segment: Segment) -> Borrowed | None:
    fork = segment.sequence.fork
    if segment.borrowed is None or fork is None:
        return None
    return Borrowed(segment.borrowed.source, fork.num_shared)


def _only_decodes(plan: StepPlan) -> bool:
    """One token of each sequence, and what comes behind it; nothing else."""
    return not plan.copies and all(
        segment.end - segment.start == 1
        and segment.wants_logits
        and segment.choice is None
        and segment.borrowed is None
        and segment.sequence.states is None
        for segment in plan.segments
    )


def _wanted(spans: Seq[SegmentSpan], segments: Seq[Segment], device: torch.device) -> Wanted:
    placed = list(zip(spans, segments, strict=True))
    choices = [(span.first_token + s.choice.at - s.start - 1, s.choice.between) for span, s in placed if s.choice]
    return _places(
        [span.first_token + span.num_queries - 1 for span, segment in placed if segment.wants_logits],
        [place for place, _ in choices],
        [between for _, between in choices],
        device,
    )


def _places(all_W: list[int], choosing_C: list[int], between_C2: list[tuple[int, int]], device: torch.device) -> Wanted:
    def tensor(numbers: list[Any]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=device)

    return Wanted(tensor(all_W), tensor(choosing_C), tensor(between_C2).view(-1, 2))


def _check_sequence(base: Base) -> list[int]:
    """Fixed token ids spread over the vocabulary."""
    size = base.model.config.vocab_size
    return [(7 + 7919 * i) % size for i in range(min(_CHECK_TOKENS, base.max_context))]


def _reference_run(base: Base, tokens: list[int]) -> tuple[Tensor, KVGeometry]:
    """transformers' own last logits [V], and the shape of what it caches."""
    cache = DynamicCache(config=base.model.config)
    output = base.model(torch.tensor([tokens], device=base.device), past_key_values=cache, use_cache=True)
    shapes = {_cached_shape(layer, name) for layer in cache.layers for name in ("keys", "values")}
    if len(shapes) != 1 or None in shapes:
        raise BaseModelError(
            f"{base.source}: layers of architecture {base.model.config.model_type!r} cache unlike keys and values, "
            "which this engine does not serve"
        )
    shape = shapes.pop()
    assert shape is not None, "checked above. This is a bug."
    num_kv_heads, head_width = shape
    return output.logits[0, -1].float(), KVGeometry(len(cache.layers), num_kv_heads, head_width)


def _cached_shape(layer: object, name: str) -> tuple[int, int] | None:
    """(heads, width) of a layer's keys or values; None for layers that keep something else, such as a state."""
    tensor = getattr(layer, name, None)
    return (tensor.shape[1], tensor.shape[3]) if isinstance(tensor, Tensor) else None
