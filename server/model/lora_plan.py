"""How a step's tokens go through experts: whose slots each uses, and what is multiplied together.

Knows tokens, slots and index tensors; nothing of the terms in the slots (`lora`), of experts' names or of sequences.

A step's tokens come in *runs* of one expert. A long run is multiplied by its expert's terms alone; short runs of like
length are multiplied together, one batched product over their slots. Either way only what a token needs is computed,
and no weights are copied unless the slots lie far apart. On a GPU, where launching a product takes longer than
computing it, all tokens are multiplied by the terms of all slots instead (`Dense`), and what is not a token's own
counts for nothing. Tokens of a *blend* go through several experts, each weighed anew in every decoder layer.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from server.model.native import NativeRuns

# Legend: T tokens in the step, S slots, L decoder layers, m tokens of the longest run of a batch.

Slots = range  # adjacent slots of one expert
_LONGEST_SHORT_RUN = 16  # tokens; from there on a product of its own costs less than the padding (2 CPU cores)
_PIECE = 32  # tokens; the kernels cut longer runs into such
_ALL_SLOTS = 64  # up to so many may be multiplied as they lie on a GPU; of more, those in use are copied
_FEW_IN_USE = 4  # or where those in use are so small a part
_SPREAD = 3  # a span of slots up to this many times as wide as those in use is multiplied whole, without a copy


@dataclass(frozen=True, eq=False)
class Blend:
    """Several experts at once: in decoder layer l what `slots[e]` add counts `weight_LE[l, e]` times (fp32, CPU)."""

    slots: tuple[Slots, ...]
    weight_LE: Tensor

    @property
    def start(self) -> int:
        """A place among those of single experts."""
        return self.slots[0].start

    @property
    def parts(self) -> Iterator[tuple[Slots, Tensor]]:
        """Each expert's slots and its weights [L]."""
        return zip(self.slots, self.weight_LE.unbind(dim=1), strict=True)


def experts_at(slots: Slots | Blend | None) -> tuple[Slots, ...]:
    """The slots of each expert that is at work."""
    if slots is None:
        return ()
    return slots.slots if isinstance(slots, Blend) else (slots,)


def present_slots(slots_T: Sequence[Slots | Blend | None]) -> list[int]:
    """All slots that some token uses, in order."""
    return sorted({slot for slots in set(slots_T) for of_expert in experts_at(slots) for slot in of_expert})


@dataclass(frozen=True)
class Run:
    """Tokens [start, stop) of one expert, whose terms count `weight_L` times in each layer; None: once."""

    start: int
    stop: int
    slots: Slots
    weight_L: Tensor | None = None

    def weight(self, layer: int | None) -> float | None:
        return weight_in(self.weight_L, layer)


@dataclass(frozen=True)
class Batch:
    """Short runs multiplied together: one row of m tokens for each slot.

    input_token[s * m + i] is the token whose input stands there (any token where none belongs). Output rows
    `output_row` are added to the tokens `output_token`; both None where they are all rows and `tokens` in order.
    """

    slots: slice | Tensor
    num_slots: int
    input_token: Tensor | None
    output_row: Tensor | None
    output_token: Tensor | None
    tokens: slice
    unique: bool  # no token has more than one slot
    weight_Lm: Tensor | None = None  # [L, rows] factors of the rows, where one of them is weighed


@dataclass(frozen=True)
class Dense:
    """Every token through all of these slots: `own_TS` says which count, `weight_LTS` how much (None: once).

    `slots_S` are the slots multiplied; None: all there are, in order.
    """

    own_TS: Tensor
    slots_S: Tensor | None
    weight_LTS: Tensor | None


@dataclass(frozen=True, kw_only=True)
class LoraPlan:
    """Which slots each token of a step uses."""

    present: frozenset[int] | None = None  # slots of the experts at work; None where only `dense` knows
    runs: Sequence[Run] = ()
    batches: Sequence[Batch] = ()
    native: NativeRuns | None = None  # all of them, where there are kernels; then there are no runs or batches here
    dense: Dense | None = None  # likewise


def plan_lora(
    slots_T: Sequence[Slots | Blend | None],
    *,
    device: torch.device,
    native: bool = False,
    dense_slots: int | None = None,
) -> LoraPlan | None:
    """The plan for a step whose token t uses `slots_T[t]`; None where every token is the base's.

    Any order is right; adjacent tokens of one expert are what makes it fast. `native`: kernels take the short runs.
    `dense_slots`: how many slots there are, where every token is to be multiplied by all, or by all in use.
    """
    if native:
        pieces = list(_pieces(slots_T))
        present = frozenset(slot for *_, entries in pieces for slot, _ in entries)
        return LoraPlan(present=present, native=NativeRuns(pieces)) if pieces else None
    if dense_slots is not None:
        return _dense(slots_T, dense_slots, device)
    runs = list(_runs(slots_T))
    if not runs:
        return None
    present = frozenset(slot for run in runs for slot in run.slots)
    long, batches = _batched(runs, device)
    return LoraPlan(present=present, runs=long, batches=batches)


def _dense(slots_T: Sequence[Slots | Blend | None], num_slots: int, device: torch.device) -> LoraPlan | None:
    present = present_slots(slots_T)
    if not present:
        return None
    all_of_them = multiplies_all(num_slots) and _FEW_IN_USE * len(present) > num_slots
    own_TS, weight_LTS = shares(slots_T, range(num_slots) if all_of_them else present)
    dense = Dense(
        own_TS=own_TS.to(device),
        slots_S=None if all_of_them else torch.tensor(present, device=device),
        weight_LTS=None if weight_LTS is None else weight_LTS.to(device),
    )
    return LoraPlan(present=frozenset(present), dense=dense)


def multiplies_all(num_slots: int) -> bool:
    """Whether a dense product may take all slots as they lie."""
    return num_slots <= _ALL_SLOTS


def shares(slots_T: Sequence[Slots | Blend | None], columns: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Which of the slots `columns` are each token's own [T, S], and, where one is weighed, how much they count
    [L, T, S]."""
    place = {slot: column for column, slot in enumerate(columns)}
    own_TS = np.zeros((len(slots_T), len(columns)), dtype=np.bool_)
    blend = next((slots for slots in slots_T if isinstance(slots, Blend)), None)
    weight_LTS = None if blend is None else torch.ones(len(blend.weight_LE), *own_TS.shape)
    for start, stop, slots in _groups(slots_T):
        for of_expert, weight_L in slots.parts if isinstance(slots, Blend) else [(slots, None)]:
            at = [place[slot] for slot in of_expert]
            own_TS[start:stop, at] = True
            if weight_L is not None and weight_LTS is not None:
                weight_LTS[:, start:stop, at] = weight_L[:, None, None]
    return torch.from_numpy(own_TS), weight_LTS


def _pieces(slots_T: Sequence[Slots | Blend | None]) -> Iterator[tuple[int, int, list[tuple[int, Tensor | None]]]]:
    """What one thread takes at a time: tokens, and their slots with the weights of each."""
    for start, stop, slots in _groups(slots_T):
        parts = slots.parts if isinstance(slots, Blend) else [(slots, None)]
        entries = [(slot, weight_L) for of_expert, weight_L in parts for slot in of_expert]
        for first in range(start, stop, _PIECE):
            yield first, min(first + _PIECE, stop), entries


def _batched(runs: Sequence[Run], device: torch.device) -> tuple[list[Run], list[Batch]]:
    """Long runs, and short ones of like length together."""
    short: dict[int, list[Run]] = defaultdict(list)
    long = []
    for run in runs:
        length = run.stop - run.start
        if length < _LONGEST_SHORT_RUN:
            short[(length - 1).bit_length()].append(run)
        else:
            long.append(run)
    batches = []
    for members in short.values():
        if len(members) == 1:
            long += members
        else:
            batches.append(_batch(members, device))
    return long, batches


def _runs(slots_T: Sequence[Slots | Blend | None]) -> Iterator[Run]:
    """Of every expert apart, also where a blend has several for the same tokens."""
    for start, stop, slots in _groups(slots_T):
        if isinstance(slots, Blend):
            yield from (Run(start, stop, of_expert, weight_L) for of_expert, weight_L in slots.parts)
        else:
            yield Run(start, stop, slots)


def _groups(slots_T: Sequence[Slots | Blend | None]) -> Iterator[tuple[int, int, Slots | Blend]]:
    """Tokens [start, stop) with the same slots, those of the base left out."""
    start = 0
    for slots, members in groupby(slots_T):
        stop = start + sum(1 for _ in members)
        if slots is not None:
            yield start, stop, slots
        start = stop


def _batch(runs: Sequence[Run], device: torch.device) -> Batch:
    """Every run once for each of its slots; runs that share slots stand in the same row one behind the other."""
    tokens_of: dict[int, list[int]] = defaultdict(list)
    weights_of: dict[int, list[Tensor | None]] = defaultdict(list)
    for run in runs:
        for slot in run.slots:
            tokens_of[slot] += range(run.start, run.stop)
            weights_of[slot] += [run.weight_L] * (run.stop - run.start)
    present = sorted(tokens_of)
    span = range(present[0], present[-1] + 1)
    whole = len(span) <= _SPREAD * len(present)
    columns = list(span) if whole else present
    longest = max(len(tokens) for tokens in tokens_of.values())
    pairs = [(row * longest + i, t) for row, slot in enumerate(columns) for i, t in enumerate(tokens_of.get(slot, ()))]
    pairs.sort(key=lambda pair: pair[1])
    filled = [runs[0].start] * (len(columns) * longest)
    for row, token in pairs:
        filled[row] = token
    tokens = [token for _, token in pairs]
    first, in_order = tokens[0], tokens == list(range(tokens[0], tokens[0] + len(tokens)))
    plain = in_order and filled == tokens
    return Batch(
        slots=slice(span.start, span.stop) if whole else torch.tensor(columns, device=device),
        num_slots=len(columns),
        input_token=None if plain else torch.tensor(filled, device=device),
        output_row=None if plain else torch.tensor([row for row, _ in pairs], device=device),
        output_token=None if in_order else torch.tensor(tokens, device=device),
        tokens=slice(first, first + len(tokens)),
        unique=len(set(tokens)) == len(tokens),
        weight_Lm=_row_weights([weights_of.get(slot, []) for slot in columns], longest, device),
    )


def _row_weights(weights: Sequence[Sequence[Tensor | None]], longest: int, device: torch.device) -> Tensor | None:
    """[L, slots * longest]: the factor of row i of a slot, 1 where there is none; None if nothing is weighed."""
    first = next((weight_L for row in weights for weight_L in row if weight_L is not None), None)
    if first is None:
        return None
    factor_Lm = torch.ones(len(first), len(weights) * longest)
    for slot, row in enumerate(weights):
        for index, weight_L in enumerate(row):
            if weight_L is not None:
                factor_Lm[:, slot * longest + index] = weight_L
    return factor_Lm.to(device)


def weight_in(weight_L: Tensor | None, layer: int | None) -> float | None:
    """Outside the decoder layers every expert counts in full, once."""
    return None if weight_L is None or layer is None else float(weight_L[layer])
