"""Decode steps as CUDA graphs: recorded once a shape, then run again with other numbers. Knows shapes; no sequences.

A decode step of a small model is hundreds of short kernels, and launching each from Python takes longer than a GPU
takes to compute it. A graph launches them all at once. What is recorded is the decoder's own forward pass (`decode`
holds its numbers), which, launched kernel by kernel, is the reference.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog
import torch
from torch import Tensor

from server.model.attention import AttentionPlan
from server.model.decode import DecodeShape, DecodeStep
from server.model.logits import Logits, Wanted
from server.model.lora import Blend, LoraPlan, Slots
from server.model.paged_kv import PagedKV, SegmentSpan

log = structlog.get_logger()


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


Recorder = Callable[[Decoder, DecodeStep], Recorded]


def recorder_for(device: torch.device) -> Recorder | None:
    """None where launching kernel by kernel is all there is."""
    return _Recorder() if device.type == "cuda" else None


class DecodeGraphs:
    """Runs steps that only decode."""

    def __init__(self, decoder: Decoder, kv: PagedKV, record: Recorder, *, num_layers: int, num_slots: int) -> None:
        self._decoder = decoder
        self._kv = kv
        self._record = record
        self._num_layers = num_layers
        self._num_slots = num_slots
        self._recorded: dict[DecodeShape, Recorded] = {}
        self._usable = True

    def run(
        self, tokens: Sequence[int], spans: Sequence[SegmentSpan], slots_T: Sequence[Slots | Blend | None]
    ) -> Tensor | None:
        """[B, V]: the logits behind these tokens, one of each sequence. None where this decoder cannot be recorded."""
        shape = DecodeShape.of(spans, slots_T, block_tokens=self._kv.block_tokens, num_slots=self._num_slots)
        recorded = self._recorded.get(shape)
        step = self._new_step(shape) if recorded is None else recorded.step
        step.fill(tokens, spans, slots_T)
        recorded = recorded or self._try_record(step)
        return None if recorded is None else recorded.run()[: len(tokens)].clone()

    def _new_step(self, shape: DecodeShape) -> DecodeStep:
        return DecodeStep(shape, self._kv, num_layers=self._num_layers, num_slots=self._num_slots)

    def _try_record(self, step: DecodeStep) -> Recorded | None:
        if not self._usable:
            return None
        try:
            self._recorded[step.shape] = self._record(self._decoder, step)
        except RuntimeError:  # an operation that waits for the device, say
            log.warning("decode_graph_failed", shape=step.shape, exc_info=True)
            self._usable = False
        return self._recorded.get(step.shape)


class _Recorder:
    """Records CUDA graphs that share their working memory, so that one runs at a time."""

    def __init__(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, decoder: Decoder, step: DecodeStep) -> "_Graph":
        return _Graph(decoder, step, self._memory)


class _Graph:
    """One graph and the numbers it reads."""

    def __init__(self, decoder: Decoder, step: DecodeStep, memory: Any) -> None:
        """Runs the step once beforehand, for what libraries set up when they are first used. A step may be run any
        number of times: it writes what it has written."""
        self.step = step
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            forward(decoder, step)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may compute gradients meanwhile
        with torch.cuda.graph(self._graph, pool=memory, capture_error_mode="thread_local"):
            self._logits_BV = forward(decoder, step)

    def run(self) -> Tensor:
        self._graph.replay()
        return self._logits_BV


def forward(decoder: Decoder, step: DecodeStep) -> Tensor:
    """[rows, V], launched kernel by kernel."""
    logits = decoder.forward(step.tokens_B, step.positions_B, step.attention(), step.lora(), step.wanted())
    return logits.all_WV
