"""LoRA for batches in which every token may have its own expert: the terms of all experts, and their products.

Knows arenas, slots and tokens; nothing of how a step is laid out (`lora_plan`), of experts' names, sequences or disks.

Every linear (or several that read the same input, side by side) has an *arena* beside it: `slot_rank` rank-1 terms for
each slot. An expert of rank r holds ceil(r / slot_rank) adjacent slots in every arena, its last terms zero.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from server.model.adapter_weights import AdapterWeights, Terms
from server.model.lora_plan import Batch, Blend, Dense, LoraPlan, Run, Slots, weight_in
from server.model.native import Kernels, NativeParts
from server.model.slot_filler import SlotFiller, Target

# Legend: T tokens in the step, I/O input and output width of a linear, P linears side by side, S slots, K slot_rank,
# m tokens of the longest run of a batch, r an expert's rank.

_LONG_RUN = 64  # tokens; from there on the outputs are what costs, so they are added to in their own format


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

    @property
    def row(self) -> tuple[int, ...]:
        """The end of a `Site` in `kernels.c`."""
        assert self._native_b is not None, "asked of an arena without kernels. This is a bug."
        pointers = (self.a.data_ptr(), self._native_b.pointers.data_ptr(), self._native_b.edges.data_ptr())
        return *pointers, len(self.b), self._rank

    @property
    def num_terms(self) -> int:
        """Of one slot, for all linears side by side."""
        return len(self.b) * self._rank

    def used_by(self, plan: LoraPlan) -> bool:
        """False where no expert of the step targets these linears."""
        return plan.present is None or not self._users.isdisjoint(plan.present)

    def add(self, y_TO: Tensor, x_TI: Tensor, plan: LoraPlan | None) -> None:
        """y += x A^T B for every token and its expert, in place; y holds the linears' outputs side by side."""
        if plan is None or not self.used_by(plan):
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

    def _add_run(self, y_TO: Tensor, x_TI: Tensor, run: Run) -> None:
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

    def _add_batch(self, y_TO: Tensor, x_TI: Tensor, batch: Batch) -> None:
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


def _add_rows(y_TO: Tensor, rows: Tensor, batch: Batch) -> None:
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
                weight = weight_in(weight_L, layer)
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
