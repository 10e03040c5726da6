"""Fills and empties slots in one native call. Knows where arenas and experts lie in memory; nothing of who is where.

Hundreds of short copies would take longer in the interpreter than on their way through memory, and everybody who is
being answered waits for them. `Arena.write` is the same one matrix at a time.
"""

from collections.abc import Mapping
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from server.model.adapter_weights import AdapterWeights, Layout
from server.model.native import Kernels, NativeFill

# Legend: S slots, P linears side by side, K slot_rank, I/O input and output width.

_FORMATS = (torch.bfloat16, torch.float32)  # of experts


class Target(NamedTuple):
    """Where one linear's slots are: part `part` of a [S, P, K, I], and all of b [S, K, O]."""

    a: Tensor
    part: int
    b: Tensor


class SlotFiller:
    """For arenas that stay where they are."""

    def __init__(self, kernels: Kernels, targets: Mapping[str, Target]) -> None:
        self._kernels = kernels
        self._targets = targets
        self._fills: WeakKeyDictionary[Layout, NativeFill] = WeakKeyDictionary()
        self._nothing = NativeFill([_row(target) for target in targets.values()], [1.0] * len(targets))

    def takes(self, layout: Layout) -> bool:
        return layout.dtype in _FORMATS

    def fill(self, slots: range, weights: AdapterWeights) -> None:
        """Puts an expert's terms where it has some, zeros behind its last one."""
        fill = self._fills.get(weights.layout)
        if fill is None:
            fill = self._fills[weights.layout] = self._fill_of(weights.layout)
        self._kernels.fill_slots(fill, torch.frombuffer(weights.memory, dtype=torch.uint8), slots)

    def empty(self, slots: range) -> None:
        """Zeros in every linear."""
        self._kernels.fill_slots(self._nothing, None, slots)

    def _fill_of(self, layout: Layout) -> NativeFill:
        rows = [
            _row(self._targets[path], a.offset_bytes, b.offset_bytes, rank=a.shape[0])
            for path, a, b, _ in layout.linears
        ]
        factors = [linear.scaling for linear in layout.linears]
        return NativeFill(rows, factors, in_fp32=layout.dtype == torch.float32)


def _row(target: Target, a_offset: int = 0, b_offset: int = 0, *, rank: int = 0) -> tuple[int, ...]:
    """As `NativeFill` has it."""
    a, part, b = target
    width_in, width_out = a.shape[-1], b.shape[-1]
    return (a[:, part].data_ptr(), a.stride(0), b.data_ptr(), b.shape[1], width_in, width_out, a_offset, b_offset, rank)
