"""LoRA for batches in which every token may have its own expert.

Knows arenas, slots and tokens; nothing of experts' names, sequences or disks.

Every linear (or several that read the same input, side by side) has an *arena* beside it: `slot_rank` rank-1 terms for
each slot. An expert of rank r holds ceil(r / slot_rank) adjacent slots in every arena, its last terms zero. A step's
tokens come in *runs* of one expert. A long run is multiplied by its expert's terms alone; short runs of like length
are multiplied together, one batched product over their slots. Either way only what a token needs is computed, and no
weights are copied unless the slots lie far apart. On a GPU, where launching a product takes longer than computing it,
all tokens are multiplied by the terms of all slots instead, and what is not a token's own counts for nothing. Tokens of
a *blend* go through several experts, each weighed anew in every decoder layer.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from server.model.adapter_weights import AdapterWeights, Terms
from server.model.native import Kernels, NativeParts, NativeRuns
from server.model.slot_filler import SlotFiller, Target

# Legend: T tokens in the step, I/O input and output width of a linear, P linears side by side, S slots, K slot_rank,
# m tokens of the longest run of a batch, r an expert's rank.

Slots = range  # adjacent slots of one expert
_LONGEST_SHORT_RUN = 16  # tokens; from there on a product of its own costs less than the padding (2 CPU cores)
_PIECE = 32  # tokens; the kernels cut longer runs into such
_LONG_RUN = 64  # tokens; from there on the outputs are what costs, so they are added to in their own format
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
class _Run:
    """Tokens [start, stop) of one expert, whose terms count `weight_L` times in each layer; None: once."""

    start: int
    stop: int
    slots: Slots
    weight_L: Tensor | None = None

    def weight(self, layer: int | None) -> float | None:
        return _weight_in(self.weight_L, layer)


@dataclass(frozen=True)
class _Batch:
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
    runs: Sequence[_Run] = ()
    batches: Sequence[_Batch] = ()
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


def _batched(runs: Sequence[_Run], device: torch.device) -> tuple[list[_Run], list[_Batch]]:
    """Long runs, and short ones of like length together."""
    short: dict[int, list[_Run]] = defaultdict(list)
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


def _runs(slots_T: Sequence[Slots | Blend | None]) -> Iterator[_Run]:
    """Of every expert apart, also where a blend has several for the same tokens."""
    for start, stop, slots in _groups(slots_T):
        if isinstance(slots, Blend):
            yield from (_Run(start, stop, of_expert, weight_L) for of_expert, weight_L in slots.parts)
        else:
            yield _Run(start, stop, slots)


def _groups(slots_T: Sequence[Slots | Blend | None]) -> Iterator[tuple[int, int, Slots | Blend]]:
    """Tokens [start, stop) with the same slots, those of the base left out."""
    start = 0
    for slots, members in groupby(slots_T):
        stop = start + sum(1 for _ in members)
        if slots is not None:
            yield start, stop, slots
        start = stop


def _batch(runs: Sequence[_Run], device: torch.device) -> _Batch:
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
    return _Batch(
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


def _weight_in(weight_L: Tensor | None, layer: int | None) -> float | None:
    """Outside the decoder layers every expert counts in full, once."""
    return None if weight_L is None or layer is None else float(weight_L[layer])


def layer_of(path: str) -> int | None:
    """The decoder layer a module is part of, by its path as in `model.layers.3.self_attn.q_proj`."""
    found = re.search(r"\.(\d+)\.", path)
    return int(found[1]) if found else None


class Arena:
    """The terms of all experts on the device for linears that read the same input, side by side.

    a [S, P, K, I], and b [S, K, O] of each linear. On a CPU without kernels they are kept in fp32, whose small batched
    products take half the time bf16's do. On a GPU the slots of one linear lie side by side.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        features: tuple[int, Sequence[int]],
        num_slots: int,
        slot_rank: int,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels | None = None,
    ) -> None:
        width_in, widths_out = features
        self.paths = tuple(paths)
        self._layer = layer_of(self.paths[0])
        self._rank = slot_rank
        self._users: set[int] = set()  # first slots of the experts that target one of these linears
        if device.type == "cuda":
            a_PSKI = torch.zeros(len(paths), num_slots, slot_rank, width_in, dtype=dtype, device=device)
            self.a = a_PSKI.transpose(0, 1)
        else:
            self.a = torch.zeros(num_slots, len(paths), slot_rank, width_in, dtype=dtype, device=device)
        self.b = [torch.zeros(num_slots, slot_rank, width, dtype=dtype, device=device) for width in widths_out]
        edges = [sum(widths_out[:i]) for i in range(len(widths_out) + 1)]
        self._columns = [slice(*edges[i : i + 2]) for i in range(len(widths_out))]
        self._kernels = kernels
        self._native_b = NativeParts(self.b) if kernels is not None else None

    @property
    def targets(self) -> Iterator[tuple[str, Target]]:
        """Where the slots of each linear are."""
        for part, path in enumerate(self.paths):
            yield path, Target(self.a, part, self.b[part])

    def write(self, slots: Slots, terms: Mapping[str, Terms]) -> None:
        """Puts an expert's terms, by module path and on the arena's device, into its empty slots."""
        for part, path in enumerate(self.paths):
            if path in terms:
                self._write_part(slots, part, terms[path])
                self._users.add(slots.start)

    def _write_part(self, slots: Slots, part: int, terms: Terms) -> None:
        """In few operations, each rounding once: an expert has hundreds of linears, and everybody waits meanwhile."""
        b_rO = self.b[part][slots.start : slots.stop].flatten(0, 1)[: len(terms.b)]
        b = terms.b if terms.b.dtype == b_rO.dtype else terms.b.float()
        torch.mul(b, terms.scaling, out=b_rO)
        missing = len(slots) * self._rank - len(terms.a)
        a_mI = pad(terms.a, (0, 0, 0, missing)) if missing else terms.a
        self.a[slots.start : slots.stop, part] = a_mI.view(len(slots), self._rank, -1)

    def erase(self, slots: Slots) -> None:
        """Empties the slots, where anything is in them."""
        if slots.start in self._users:
            self.give_up(slots)
            for tensor in (self.a, *self.b):
                tensor[slots.start : slots.stop] = 0

    def take(self, slots: Slots) -> None:
        """An expert's terms are in these slots from now on."""
        self._users.add(slots.start)

    def give_up(self, slots: Slots) -> None:
        """These slots are empty from now on."""
        self._users.discard(slots.start)

    @property
    def slot_bytes(self) -> int:
        return sum(tensor[0].nbytes for tensor in (self.a, *self.b))

    def add(self, y_TO: Tensor, x_TI: Tensor, plan: LoraPlan | None) -> None:
        """y += x A^T B for every token and its expert, in place; y holds the linears' outputs side by side."""
        if plan is None or (plan.present is not None and self._users.isdisjoint(plan.present)):
            return
        if plan.dense is not None:
            self._add_dense(y_TO, x_TI, plan.dense)
        for run in plan.runs:
            if run.slots.start in self._users:
                self._add_run(y_TO, x_TI, run)
        if plan.native is not None:
            assert self._kernels is not None, "a plan for kernels met an arena without. This is a bug."
            assert self._native_b is not None, "kernels come with their view of the outputs. This is a bug."
            self._kernels.add_terms(y_TO, x_TI, self.a, self._native_b, plan.native, self._layer)
        for batch in plan.batches:
            self._add_batch(y_TO, x_TI, batch)

    def _add_dense(self, y_TO: Tensor, x_TI: Tensor, dense: Dense) -> None:
        a_PSKI = self.a.transpose(0, 1)
        if dense.slots_S is not None:
            a_PSKI = a_PSKI.index_select(1, dense.slots_S)
        h = x_TI.to(a_PSKI.dtype) @ a_PSKI.flatten(0, 2).T
        h_TPSK = h.view(-1, *a_PSKI.shape[:3])
        # Not a product with zeros: what overflows in an expert that is not the token's own would be NaN there. Zeros
        # times B are zeros, for no expert is loaded whose B is not finite.
        h_TPSK = torch.where(dense.own_TS[:, None, :, None], h_TPSK, 0)
        if dense.weight_LTS is not None and self._layer is not None:
            h_TPSK = (h_TPSK * dense.weight_LTS[self._layer][:, None, :, None]).to(h.dtype)
        for part, columns in enumerate(self._columns):
            b_SKO = self.b[part] if dense.slots_S is None else self.b[part].index_select(0, dense.slots_S)
            h, b = h_TPSK[:, part].flatten(1), b_SKO.flatten(0, 1)
            if h.dtype == y_TO.dtype:
                y_TO[:, columns].addmm_(h, b)
            else:
                y_TO[:, columns] += (h @ b).to(y_TO.dtype)

    def _add_run(self, y_TO: Tensor, x_TI: Tensor, run: _Run) -> None:
        tokens, slots = slice(run.start, run.stop), slice(run.slots.start, run.slots.stop)
        dtype = y_TO.dtype if run.stop - run.start >= _LONG_RUN else self.a.dtype
        h = x_TI[tokens].to(dtype) @ self.a[slots].flatten(0, 2).to(dtype).T  # [t, slots * P * K]
        weight = run.weight(self._layer)
        if weight is not None:
            h = h * weight
        if dtype == y_TO.dtype:
            y_TO[tokens].addmm_(h, self._outputs(slots, dtype))
        else:
            y_TO[tokens] += (h @ self._outputs(slots, dtype)).to(y_TO.dtype)

    def _outputs(self, slots: slice, dtype: torch.dtype) -> Tensor:
        """[slots * P * K, O of all]: every part's terms in its own columns, zeros beside them."""
        if len(self.b) == 1:
            return self.b[0][slots].flatten(0, 1).to(dtype)
        parts = [b[slots] for b in self.b]
        num_slots, rank = parts[0].shape[:2]
        all_O = parts[0].new_zeros(num_slots, len(parts), rank, self._columns[-1].stop, dtype=dtype)
        for index, (part, columns) in enumerate(zip(parts, self._columns, strict=True)):
            all_O[:, index, :, columns] = part
        return all_O.flatten(0, 2)

    def _add_batch(self, y_TO: Tensor, x_TI: Tensor, batch: _Batch) -> None:
        x = x_TI[batch.tokens] if batch.input_token is None else x_TI.index_select(0, batch.input_token)
        a = self.a[batch.slots].flatten(1, 2)
        x_SmI = x.to(a.dtype).view(batch.num_slots, -1, a.shape[-1])
        h = torch.bmm(x_SmI, a.transpose(1, 2))  # [S, m, P * K]
        if batch.weight_Lm is not None and self._layer is not None:
            h = (h * batch.weight_Lm[self._layer].view(batch.num_slots, -1, 1)).to(h.dtype)
        for part, columns in enumerate(self._columns):
            terms = slice(part * self._rank, (part + 1) * self._rank)
            rows = torch.bmm(h[:, :, terms], self.b[part][batch.slots]).flatten(0, 1)
            if batch.output_row is not None:
                rows = rows.index_select(0, batch.output_row)
            _add_rows(y_TO[:, columns], rows, batch)


def _add_rows(y_TO: Tensor, rows: Tensor, batch: _Batch) -> None:
    if batch.output_token is None:
        y_TO[batch.tokens] += rows.to(y_TO.dtype)
    elif batch.unique:
        y_TO[batch.output_token] += rows.to(y_TO.dtype)
    else:  # tokens with several slots: the sum over them first, for it is what is to be rounded
        total = torch.zeros(y_TO.shape, dtype=rows.dtype, device=rows.device)
        y_TO += total.index_add_(0, batch.output_token, rows).to(y_TO.dtype)


def add_reference(arena: Arena, y_TO: Tensor, x_TI: Tensor, slots_T: Sequence[Slots | Blend | None]) -> None:
    """The obvious loop `Arena.add` must equal: each token by itself through its own experts' terms."""
    layer = layer_of(arena.paths[0])
    for token, slots in enumerate(slots_T):
        if slots is None:
            continue
        first = 0
        for part, b in enumerate(arena.b):
            for of_expert, weight_L in slots.parts if isinstance(slots, Blend) else [(slots, None)]:
                weight = _weight_in(weight_L, layer)
                for slot in of_expert:
                    delta_O = (x_TI[token].to(b.dtype) @ arena.a[slot, part].T) @ b[slot]
                    delta_O = delta_O if weight is None else weight * delta_O
                    y_TO[token, first : first + b.shape[-1]] += delta_O.to(y_TO.dtype)
            first += b.shape[-1]


class LoraArenas:
    """All arenas of one model. Owns which slots hold which terms; the caller says where."""

    def __init__(self, arenas: Sequence[Arena], kernels: Kernels | None = None) -> None:
        self._arenas = arenas
        self._device = arenas[0].a.device if arenas else None  # a model may have no linear to adapt
        targets = dict(target for arena in arenas for target in arena.targets)
        self._filler = SlotFiller(kernels, targets) if kernels is not None else None

    @property
    def slot_bytes(self) -> int:
        """What one slot takes in all arenas together."""
        return sum(arena.slot_bytes for arena in self._arenas)

    def write(self, slots: Slots, weights: AdapterWeights) -> None:
        """Puts an expert's terms into its slots, which are empty."""
        if self._filler is None or not self._filler.takes(weights.layout):
            terms = weights.terms(self._device)
            for arena in self._arenas:
                arena.write(slots, terms)
            return
        self._filler.fill(slots, weights)
        for arena in self._arenas:
            if not weights.layout.paths.isdisjoint(arena.paths):
                arena.take(slots)

    def erase(self, slots: Slots) -> None:
        """Empties the slots of one expert."""
        if self._filler is None:
            for arena in self._arenas:
                arena.erase(slots)
            return
        self._filler.empty(slots)
        for arena in self._arenas:
            arena.give_up(slots)


NewArena = Callable[[Sequence[str]], Arena]  # for linears that read the same input, by module path


def arena_maker(
    linears: Mapping[str, tuple[int, int]],
    *,
    num_slots: int,
    slot_rank: int,
    like: Tensor,
    kernels: Kernels | None = None,
) -> NewArena:
    """Makes arenas for the linears of one model, whose (input, output) widths `linears` gives by module path."""
    dtype = torch.float32 if like.device.type == "cpu" and kernels is None else like.dtype

    def new_arena(paths: Sequence[str]) -> Arena:
        return Arena(
            paths,
            features=(linears[paths[0]][0], [linears[path][1] for path in paths]),
            num_slots=num_slots,
            slot_rank=slot_rank,
            dtype=dtype,
            device=like.device,
            kernels=kernels,
        )

    return new_arena
