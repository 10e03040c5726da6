"""Decode steps of a fixed shape: one token for each of some sequences, as numbers in memory that stays where it is.

Knows tokens, blocks and slots; nothing of sequences' owners or of how such a step is run (`decode_graphs`). What the
other steps lay out with index tensors of their own making (`attention`, `lora`) is computed here, on the device, from
one tensor of numbers, so that the same operations serve every step of the shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.model.attention import AttentionPlan, Group
from server.model.logits import Wanted
from server.model.lora import Batch, Blend, LoraPlan, Slots, experts_at
from server.model.paged_kv import PagedKV, SegmentSpan

# Legend: B rows, one token each; N blocks of a sequence; M slots of a token; L decoder layers.

_FEWEST_BLOCKS = 8


@dataclass(frozen=True)
class DecodeShape:
    """`rows` sequences of up to `blocks` blocks. Each has up to `slots` slots (0: all are the base's), which count in
    part if `weighed`."""

    rows: int
    blocks: int
    slots: int
    weighed: bool

    @classmethod
    def of(
        cls, spans: Sequence[SegmentSpan], slots_T: Sequence[Slots | Blend | None], block_tokens: int
    ) -> "DecodeShape":
        """The next one up, in powers of two, so that few shapes serve all steps."""
        blocks = max(-(-span.num_keys // block_tokens) for span in spans)
        slots = max(sum(len(of_expert) for of_expert in experts_at(of_token)) for of_token in slots_T)
        return cls(
            rows=_power_of_two(len(spans)),
            blocks=max(_FEWEST_BLOCKS, _power_of_two(blocks)),
            slots=_power_of_two(slots) if slots else 0,
            weighed=any(isinstance(of_token, Blend) for of_token in slots_T),
        )


class DecodeStep:
    """The numbers of one step at a time. `empty_slot` is one that holds no expert, ever."""

    def __init__(self, shape: DecodeShape, kv: PagedKV, *, num_layers: int, empty_slot: int) -> None:
        self.shape = shape
        self._kv = kv
        self._empty_slot = empty_slot
        on_gpu = kv.device.type == "cuda"
        columns = 3 + shape.blocks + shape.slots  # token, position, place; blocks; slots
        self._host = torch.zeros(shape.rows, columns, dtype=torch.int64, pin_memory=on_gpu)
        self._numbers = torch.zeros(shape.rows, columns, dtype=torch.int64, device=kv.device)
        weights = (num_layers, shape.rows * shape.slots) if shape.weighed else (0, 0)
        self._host_weights = torch.ones(weights, pin_memory=on_gpu)
        self._weight_Lm = torch.ones(weights, device=kv.device)

    def fill(
        self, tokens: Sequence[int], spans: Sequence[SegmentSpan], slots_T: Sequence[Slots | Blend | None]
    ) -> None:
        """The next step, once the one before has been computed. Rows beyond its own do what its first one does."""
        numbers: NDArray[np.int64] = self._host.numpy()
        capacity, num_heads = self._kv.block_tokens, 2 * self._kv.num_kv_heads
        for row, (token, span) in enumerate(zip(tokens, spans, strict=True)):
            place = span.blocks[span.position // capacity] * num_heads * capacity + span.position % capacity
            numbers[row, :3] = token, span.position, place
            blocks = span.blocks[: self.shape.blocks]
            numbers[row, 3 : 3 + len(blocks)] = blocks
            numbers[row, 3 + len(blocks) : 3 + self.shape.blocks] = 0
        if self.shape.slots:
            self._fill_slots(numbers[:, 3 + self.shape.blocks :], slots_T)
        numbers[len(spans) :] = numbers[0]
        self._numbers.copy_(self._host, non_blocking=True)

    def _fill_slots(self, numbers_BM: NDArray[np.int64], slots_T: Sequence[Slots | Blend | None]) -> None:
        numbers_BM[:] = self._empty_slot
        for row, of_token in enumerate(slots_T):
            slots = [slot for of_expert in experts_at(of_token) for slot in of_expert]
            numbers_BM[row, : len(slots)] = slots
        if not self.shape.weighed:
            return
        self._host_weights.fill_(1.0)
        weight_LBM = self._host_weights.view(-1, self.shape.rows, self.shape.slots)
        for row, of_token in enumerate(slots_T):
            if isinstance(of_token, Blend):
                parts = [weight_L[:, None].expand(-1, len(of_expert)) for of_expert, weight_L in of_token.parts]
                weights_Lm = torch.cat(parts, dim=1)
                weight_LBM[:, row, : weights_Lm.shape[1]] = weights_Lm
        weight_LBM[:, len(slots_T) :] = weight_LBM[:, :1]
        self._weight_Lm.copy_(self._host_weights, non_blocking=True)

    @property
    def tokens_B(self) -> Tensor:
        return self._numbers[:, 0]

    @property
    def positions_B(self) -> Tensor:
        return self._numbers[:, 1]

    def attention(self) -> AttentionPlan:
        """Made anew for each run of the model: what it derives from the numbers is part of the run."""
        table_BN = self._numbers[:, 3 : 3 + self.shape.blocks]
        group = Group(slice(0, self.shape.rows), table_BN, self.positions_B[:, None], self._kv)
        return AttentionPlan(kv=self._kv, place_T=self._numbers[:, 2], copies=None, groups=[group], long_segments=[])

    def lora(self) -> LoraPlan | None:
        """As `attention`: a row for each slot of each token, with a copy of its terms."""
        rows, slots = self.shape.rows, self.shape.slots
        if not slots:
            return None
        token_of_row = torch.arange(rows, device=self._kv.device).repeat_interleave(slots) if slots > 1 else None
        batch = Batch(
            slots=self._numbers[:, 3 + self.shape.blocks :].flatten(),
            num_slots=rows * slots,
            input_token=token_of_row,
            output_row=None,
            output_token=token_of_row,
            tokens=slice(0, rows),
            unique=slots == 1,
            weight_Lm=self._weight_Lm if self.shape.weighed else None,
        )
        return LoraPlan(present=None, runs=(), batches=[batch], native=None)

    def wanted(self) -> Wanted:
        """All logits of every row."""
        device = self._kv.device
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Wanted(torch.arange(self.shape.rows, device=device), none, none.view(-1, 2))


def _power_of_two(number: int) -> int:
    """The next one, at least 1."""
    return 1 << (number - 1).bit_length()
