"""Decode steps of a fixed shape: one token for each of some sequences, as numbers in memory that stays where it is.

Knows tokens, blocks and slots; nothing of sequences' owners or of how such a step is run (`decode_graphs`). What the
other steps lay out with index tensors of their own making (`attention`, `lora`) is computed here, on the device, from
those numbers, so that the same operations serve every step of the shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.model.attention import AttentionPlan, Group
from server.model.logits import Wanted
from server.model.lora_plan import Blend, Dense, LoraPlan, Slots, multiplies_all, present_slots, shares
from server.model.paged_kv import PagedKV, SegmentSpan

# Legend: B rows, one token each; N blocks of a sequence; S slots; L decoder layers.

_FEWEST_BLOCKS = 8


@dataclass(frozen=True)
class DecodeShape:
    """`rows` sequences of up to `blocks` blocks, whose experts have up to `slots` slots (0: all are the base's), which
    count in part if `weighed`."""

    rows: int
    blocks: int
    slots: int
    weighed: bool

    @classmethod
    def of(
        cls, spans: Sequence[SegmentSpan], slots_T: Sequence[Slots | Blend | None], *, block_tokens: int, num_slots: int
    ) -> "DecodeShape":
        """The next one up, in powers of two, so that few shapes serve all steps."""
        blocks = max(-(-span.num_keys // block_tokens) for span in spans)
        present = len(present_slots(slots_T))
        return cls(
            rows=_power_of_two(len(spans)),
            blocks=max(_FEWEST_BLOCKS, _power_of_two(blocks)),
            slots=0 if not present else num_slots if multiplies_all(num_slots) else _power_of_two(present),
            weighed=any(isinstance(slots, Blend) for slots in slots_T),
        )


class DecodeStep:
    """The numbers of one step at a time."""

    def __init__(self, shape: DecodeShape, kv: PagedKV, *, num_layers: int, num_slots: int) -> None:
        self.shape = shape
        self._kv = kv
        self._all_slots = multiplies_all(num_slots)
        self._numbers = _Mirrored((shape.rows, 3 + shape.blocks), torch.int64, kv.device)  # token, position, place
        self._slots = _Mirrored((shape.slots,), torch.int64, kv.device)
        self._own = _Mirrored((shape.rows, shape.slots), torch.bool, kv.device)
        self._weights = _Mirrored((num_layers if shape.weighed else 0, *self._own.host.shape), torch.float32, kv.device)

    def fill(
        self, tokens: Sequence[int], spans: Sequence[SegmentSpan], slots_T: Sequence[Slots | Blend | None]
    ) -> None:
        """The next step, once the one before has been computed. Rows beyond its own do what its first one does."""
        numbers: NDArray[np.int64] = self._numbers.host.numpy()
        for row, (token, span) in enumerate(zip(tokens, spans, strict=True)):
            blocks = span.blocks[: self.shape.blocks]
            numbers[row, :3] = token, span.position, self._kv.place(span, span.position)
            numbers[row, 3 : 3 + len(blocks)] = blocks
            numbers[row, 3 + len(blocks) :] = 0
        numbers[len(spans) :] = numbers[0]
        self._numbers.send()
        if self.shape.slots:
            self._fill_slots(slots_T)

    def _fill_slots(self, slots_T: Sequence[Slots | Blend | None]) -> None:
        columns: Sequence[int] = range(self.shape.slots)
        if not self._all_slots:
            columns = present_slots(slots_T)
            self._slots.host[: len(columns)] = torch.tensor(columns)
            self._slots.host[len(columns) :] = 0  # nobody's in this step
            self._slots.send()
        own_TS, weight_LTS = shares(slots_T, columns)
        self._own.host.zero_()
        self._own.host[: len(slots_T), : len(columns)] = own_TS
        self._own.host[len(slots_T) :] = self._own.host[0]
        self._own.send()
        if weight_LTS is not None:
            self._weights.host[:, : len(slots_T), : len(columns)] = weight_LTS
            self._weights.host[:, len(slots_T) :] = self._weights.host[:, :1]
            self._weights.send()

    @property
    def tokens_B(self) -> Tensor:
        return self._numbers.device[:, 0]

    @property
    def positions_B(self) -> Tensor:
        return self._numbers.device[:, 1]

    def attention(self) -> AttentionPlan:
        """Made anew for each run of the model: what it derives from the numbers is part of the run."""
        numbers = self._numbers.device
        group = Group(slice(0, self.shape.rows), numbers[:, 3:], self.positions_B[:, None], self._kv)
        return AttentionPlan(kv=self._kv, place_T=numbers[:, 2], copies=None, groups=[group], long_segments=[])

    def lora(self) -> LoraPlan | None:
        if not self.shape.slots:
            return None
        dense = Dense(
            own_TS=self._own.device,
            slots_S=None if self._all_slots else self._slots.device,
            weight_LTS=self._weights.device if self.shape.weighed else None,
        )
        return LoraPlan(dense=dense)

    def wanted(self) -> Wanted:
        """All logits of every row."""
        device = self._kv.device
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Wanted(torch.arange(self.shape.rows, device=device), none, none.view(-1, 2))


class _Mirrored:
    """Numbers that are written on the host and read on the device."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.host = torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self.device = torch.zeros(shape, dtype=dtype, device=device)

    def send(self) -> None:
        self.device.copy_(self.host, non_blocking=True)


def _power_of_two(number: int) -> int:
    """The next one, at least 1."""
    return 1 << (number - 1).bit_length()
