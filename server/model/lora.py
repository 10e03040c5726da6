"""LoRA in the base model's linear layers, for batches in which every token may have its own expert.

Knows arenas, rows and masks; nothing of experts' names, sequences or disks.

Each adapted linear owns an *arena*: two matrices whose rows are rank-1 terms. An expert of rank r holds r adjacent rows
in every arena. One step multiplies its tokens by the rows present and masks out what is not theirs, so any mix of ranks
and targets costs three operations a layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Legend: T tokens in the step, I/O input and output width, R arena rows in use in the step, r one expert's rank.

Rows = range  # adjacent arena rows of one expert


@dataclass(frozen=True)
class AdapterWeights:
    """One expert's terms by module path: `a` [r, I] and `b` [r, O], scaling already folded into `b`."""

    rank: int
    terms: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LoraPlan:
    """Which arena rows each token of a step uses.

    Tokens before `first_token` run on the base alone. foreign_TR[t - first_token, i] is False where rows[i]
    belongs to token t's expert, else True.
    """

    first_token: int
    rows: slice | Tensor
    foreign_TR: Tensor


class LoraSwitch:
    """What the adapted layers of one model look at during a step. Set by the runner, read by the layers."""

    def __init__(self) -> None:
        self.plan: LoraPlan | None = None


class MultiLoraLinear(nn.Module):
    """A linear layer with an arena beside it."""

    def __init__(self, base: nn.Module, *, features: tuple[int, int], num_rows: int, switch: LoraSwitch) -> None:
        super().__init__()
        self.base = base
        self._switch = switch
        self._users: set[int] = set()  # first rows of the experts that target this layer
        weight = next(base.parameters())
        self.arena_a = torch.zeros(num_rows, features[0], dtype=weight.dtype, device=weight.device)
        self.arena_b = torch.zeros(num_rows, features[1], dtype=weight.dtype, device=weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """[1, T, I] -> [1, T, O]."""
        y: Tensor = self.base(x)
        plan = self._switch.plan
        if plan is None or not self._users:
            return y
        add_lora(y[0, plan.first_token :], x[0, plan.first_token :], self.arena_a, self.arena_b, plan)
        return y

    def write(self, rows: Rows, terms: tuple[Tensor, Tensor] | None) -> None:
        """Puts an expert's terms into its rows; None where the expert does not target this layer."""
        self.erase(rows)
        if terms is not None:
            self.arena_a[rows.start : rows.stop] = terms[0]
            self.arena_b[rows.start : rows.stop] = terms[1]
            self._users.add(rows.start)

    def erase(self, rows: Rows) -> None:
        """Empties the rows."""
        self._users.discard(rows.start)
        self.arena_a[rows.start : rows.stop] = 0
        self.arena_b[rows.start : rows.stop] = 0


def add_lora(y_TO: Tensor, x_TI: Tensor, arena_a: Tensor, arena_b: Tensor, plan: LoraPlan) -> None:
    """y += (x A^T, zero where foreign) B over the rows of the plan, in place.

    Foreign terms are overwritten, not multiplied by 0, so that an expert whose terms overflow stays alone with that.
    """
    h_TR = (x_TI @ arena_a[plan.rows].T).masked_fill_(plan.foreign_TR, 0)
    y_TO.addmm_(h_TR, arena_b[plan.rows])


def add_lora_reference(
    y_TO: Tensor, x_TI: Tensor, arena_a: Tensor, arena_b: Tensor, rows_T: Sequence[Rows | None]
) -> None:
    """The obvious loop `add_lora` must equal: each token by itself through its own expert's terms."""
    for token, rows in enumerate(rows_T):
        if rows is not None:
            a, b = arena_a[rows.start : rows.stop], arena_b[rows.start : rows.stop]
            y_TO[token] += (x_TI[token] @ a.T) @ b


def plan_rows(rows_T: Sequence[Rows | None], *, device: torch.device) -> LoraPlan | None:
    """The plan for a step whose token t uses `rows_T[t]`; None where every token is the base's.

    Base tokens should come first: only the tokens from the first adapted one on are computed.
    """
    first = next((t for t, rows in enumerate(rows_T) if rows is not None), None)
    if first is None:
        return None
    present = sorted({rows for rows in rows_T if rows is not None}, key=lambda rows: rows.start)
    columns, selected = _select(present)
    owner_T = torch.tensor([-1 if rows is None else rows.start for rows in rows_T[first:]], device=device)
    owner_R = torch.full((len(columns),), -2, device=device)
    for rows in present:
        offset = columns.index(rows.start)
        owner_R[offset : offset + len(rows)] = rows.start
    foreign_TR = owner_T[:, None] != owner_R[None, :]
    return LoraPlan(first_token=first, rows=_as_index(columns, selected, device), foreign_TR=foreign_TR)


def _select(present: Sequence[Rows]) -> tuple[Sequence[int], bool]:
    """Arena rows to multiply by: the span from first to last where that is not much wider than the rows present, which
    needs no copy, else exactly the rows present."""
    span = range(present[0].start, present[-1].stop)
    num_present = sum(len(rows) for rows in present)
    if len(span) <= 2 * num_present:
        return span, False
    return [row for rows in present for row in rows], True


def _as_index(columns: Sequence[int], selected: bool, device: torch.device) -> slice | Tensor:
    if selected:
        return torch.tensor(columns, device=device)
    return slice(columns[0], columns[-1] + 1)


class LoraArenas:
    """All arenas of one model. Owns which rows hold which terms; the caller says where."""

    def __init__(self, model: PreTrainedModel, *, linears: Mapping[str, tuple[int, int]], num_rows: int) -> None:
        self.switch = LoraSwitch()
        self.num_rows = num_rows
        self._layers: dict[str, MultiLoraLinear] = {}
        for path, features in linears.items():
            parent_path, _, attribute = path.rpartition(".")
            parent = model.get_submodule(parent_path)
            layer = MultiLoraLinear(
                getattr(parent, attribute), features=features, num_rows=num_rows, switch=self.switch
            )
            setattr(parent, attribute, layer)
            self._layers[path] = layer

    def write(self, rows: Rows, weights: AdapterWeights) -> None:
        for path, layer in self._layers.items():
            layer.write(rows, weights.terms.get(path))

    def erase(self, rows: Rows) -> None:
        for layer in self._layers.values():
            layer.erase(rows)

    def layers(self) -> Iterable[tuple[str, MultiLoraLinear]]:
        return self._layers.items()
