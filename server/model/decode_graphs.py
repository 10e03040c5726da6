"""Decode steps as CUDA graphs: recorded once a shape, then run again with other numbers. Knows shapes; no sequences.

A decode step of a small model is hundreds of short kernels, and launching each from Python takes longer than a GPU
takes to compute it. A graph launches them all at once. What is recorded is the decoder's own forward pass (`decode`
holds its numbers), which, launched kernel by kernel, is the reference.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import structlog
import torch
from torch import Tensor

from server.model.attention import AttentionPlan
from server.model.decode import DecodeShape, DecodeStep
from server.model.logits import Logits, Wanted
from server.model.lora_plan import Blend, LoraPlan, Slots
from server.model.paged_kv import PagedKV, SegmentSpan

log = structlog.get_logger()

_MOST_PADDING = 2  # times the cache: blocks that a shape may gather, its rows all as long as the longest


class Decoder(Protocol):
    def forward(
        self, tokens_T: Tensor, positions_T: Tensor, attention: AttentionPlan, lora: LoraPlan | None, wanted: Wanted
    ) -> Logits: ...


class Recorded(Protocol):
    """A shape's forward pass, ready to be run."""

    @property
    def step(self) -> DecodeStep: ...

    def run(self) -> Tensor:
        """[rows, V]: the logits of the step whose numbers are there, until any other recorded step runs."""
        ...


Recorder = Callable[[Decoder, DecodeStep], Recorded]  # raises RuntimeError for what cannot be recorded


def recorder_for(device: torch.device) -> Recorder | None:
    """None where launching kernel by kernel is all there is."""
    return _Recorder(device) if device.type == "cuda" else None


class DecodeGraphs:
    """Runs steps that only decode. Once a shape could not be recorded, no other is tried."""

    def __init__(self, decoder: Decoder, kv: PagedKV, record: Recorder, *, num_layers: int, num_slots: int) -> None:
        self._decoder = decoder
        self._kv = kv
        self._record = record
        self._num_layers = num_layers
        self._num_slots = num_slots
        self._recorded: dict[DecodeShape, Recorded] = {}
        self._recordable = True

    def run(
        self, tokens: Sequence[int], spans: Sequence[SegmentSpan], slots_T: Sequence[Slots | Blend | None]
    ) -> Tensor | None:
        """[B, V]: the logits behind these tokens, one of each sequence. None for a step that is to be launched kernel
        by kernel: it cannot be recorded, or is so uneven that padding would take more than the launches do."""
        shape = DecodeShape.of(spans, slots_T, block_tokens=self._kv.block_tokens, num_slots=self._num_slots)
        recorded = self._recorded.get(shape)
        if recorded is not None:
            recorded.step.fill(tokens, spans, slots_T)
        elif self._recordable and shape.rows * shape.blocks <= _MOST_PADDING * self._kv.num_blocks:
            step = DecodeStep(shape, self._kv, num_layers=self._num_layers, num_slots=self._num_slots)
            step.fill(tokens, spans, slots_T)
            recorded = self._try_record(step)
        return None if recorded is None else recorded.run()[: len(tokens)].clone()

    def _try_record(self, step: DecodeStep) -> Recorded | None:
        try:
            self._recorded[step.shape] = self._record(self._decoder, step)
        except RuntimeError:  # an operation that waits for the device, say, or no memory left
            log.warning("decode_graph_failed", shape=step.shape, exc_info=True)
            self._recordable = False
        return self._recorded.get(step.shape)


class _Recorder:
    """Records CUDA graphs of one device. They share their working memory, so that one runs at a time, and the stream
    they are recorded on, for each of which libraries keep a work space."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @cached_property
    def _memory(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def __call__(self, decoder: Decoder, step: DecodeStep) -> "_Graph":
        with torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            self._stream.wait_stream(here)
            try:
                return self._record(decoder, step)
            finally:  # a recording that fails leaves its stream the current one
                torch.cuda.set_stream(here)
                here.wait_stream(self._stream)

    def _record(self, decoder: Decoder, step: DecodeStep) -> "_Graph":
        """Runs the step once beforehand, for what libraries set up when they are first used. A step may be run any
        number of times: it writes what it has written."""
        with torch.cuda.stream(self._stream):
            forward(decoder, step)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may compute gradients meanwhile
        with torch.cuda.graph(graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"):
            logits_BV = forward(decoder, step)
        return _Graph(step, graph, logits_BV)


class _Graph:
    """One graph, the numbers it reads and the logits it writes."""

    def __init__(self, step: DecodeStep, graph: torch.cuda.CUDAGraph, logits_BV: Tensor) -> None:
        self.step = step
        self._graph = graph
        self._logits_BV = logits_BV

    def run(self) -> Tensor:
        self._graph.replay()
        return self._logits_BV


def forward(decoder: Decoder, step: DecodeStep) -> Tensor:
    """[rows, V], launched kernel by kernel."""
    logits = decoder.forward(step.tokens_B, step.positions_B, step.attention(), step.lora(), step.wanted())
    return logits.all_WV
