"""Orders examples into optimiser steps and pads them into tensors. Knows nothing of models, adapters or files."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.data import Example

# N rows, P prompt tokens computed without gradients (padded on the left), S tokens trained through (padded on the
# right), L labelled positions.
_PASS_COST = 300  # tokens that take as long as the fixed cost of one more forward and backward pass (2 CPU cores, 135M)
_PART_TOKENS = 1024  # trained through at once, padding included; until its backward pass each takes 2 MB with 135M
_LENGTH_POOL = 8  # steps whose rows are sorted by length together: less padding, still random enough


class Part(TypedDict):
    """Rows that go through the model together.

    `hidden_at_L` indexes the flattened [N * S] hidden states whose next token is `target_L`.
    """

    frozen_NP: Tensor
    frozen_mask_NP: Tensor
    trained_NS: Tensor
    trained_mask_NS: Tensor
    hidden_at_L: Tensor
    target_L: Tensor
    weight_L: Tensor


AnyPart = TypeVar("AnyPart")


def on_device(part: AnyPart, device: torch.device) -> AnyPart:
    """A part, of whatever kind, with its tensors on the device of the model it is for."""
    tensors = cast(dict[str, Tensor], part)
    return cast(AnyPart, {name: tensor.to(device) for name, tensor in tensors.items()})


class Step(TypedDict):
    """One optimiser step; the loss is the sum of weight_L * cross entropy over all parts."""

    parts: list[Part]
    ids: list[str]
    num_tokens: int


@dataclass(frozen=True)
class StepRows:
    accepted: tuple[Example, ...]
    rejected: tuple[Example, ...]


def plan_steps(
    accepted: Sequence[Example], rejected: Sequence[Example], *, batch_size: int, epochs: int, seed: int
) -> list[StepRows]:
    """Every step of the whole run, a pure function of its arguments, so that a resumed run continues exactly.

    Every epoch uses every row once; accepted and rejected rows are spread evenly over the steps. With a batch size of
    one some steps would come out without a row; they are left out.
    """
    num_steps = max(1, round((len(accepted) + len(rejected)) / batch_size))
    plan: list[StepRows] = []
    for epoch in range(epochs):
        rng = random.Random(f"plan {seed} {epoch}")
        left, right = (_chunks(rows, num_steps, rng) for rows in (accepted, rejected))
        plan += [StepRows(a, b) for a, b in zip(left, right, strict=True) if a or b]
    return plan


def _chunks(rows: Sequence[Example], num_chunks: int, rng: random.Random) -> list[tuple[Example, ...]]:
    """Random chunks of nearly equal size whose rows are of similar length, in random order."""
    order = list(rows)
    rng.shuffle(order)
    bounds = [round(i * len(order) / num_chunks) for i in range(num_chunks + 1)]
    chunks: list[tuple[Example, ...]] = []
    for first in range(0, num_chunks, _LENGTH_POOL):
        last = min(first + _LENGTH_POOL, num_chunks)
        order[bounds[first] : bounds[last]] = sorted(order[bounds[first] : bounds[last]], key=lambda e: len(e.tokens))
        pool = [tuple(order[bounds[i] : bounds[i + 1]]) for i in range(first, last)]
        rng.shuffle(pool)
        chunks += pool
    return chunks


@dataclass(frozen=True)
class Collator:
    """Pads the rows of a step and weighs their labels.

    `activated` freezes the prompt up to the generation prompt; otherwise all tokens are trained through. The decision
    is one token among many, so it is weighed apart: its mean over the rows times `decision_weight`, plus the mean over
    all other labels. The first `num_shared` tokens are the same in all rows and left out (activated experts only).
    """

    activated: bool
    decision_weight: float
    pad: int
    num_shared: int = 0

    def collate(self, rows: StepRows) -> Step:
        groups = self._groups(rows)
        examples = [e for group in groups for e in group]
        num_others = sum(len(e.tokens) - e.target_start - 1 for e in examples)
        decision = self.decision_weight / len(examples)
        return Step(
            parts=[part for group in groups for part in self.parts(group, decision=decision, other=1.0 / num_others)],
            ids=[e.row.id for e in examples],
            num_tokens=sum(len(e.tokens) for e in examples),
        )

    def _groups(self, rows: StepRows) -> list[tuple[Example, ...]]:
        """Rejected rows are short; they go apart where padding them would cost more than another pass."""
        together = (*rows.accepted, *rows.rejected)
        apart = [group for group in (rows.accepted, rows.rejected) if group]
        saved = self._cost(together) - sum(self._cost(group) for group in apart)
        return apart if saved > _PASS_COST else [together]

    def _cost(self, examples: Sequence[Example]) -> int:
        """Of one pass, in tokens run forward only; a token trained through costs three."""
        starts = [e.frozen_length if self.activated else 0 for e in examples]
        trained = max(len(e.tokens) - start for e, start in zip(examples, starts, strict=True))
        return len(examples) * (max(starts) - self.num_shared + 3 * trained)

    def parts(self, examples: Sequence[Example], *, decision: float, other: float) -> list[Part]:
        """In as few parts as memory allows."""
        widest = max(len(e.tokens) - (e.frozen_length if self.activated else 0) for e in examples)
        return [
            self.part(examples[rows], decision=decision, other=other) for rows in in_parts(len(examples), widest=widest)
        ]

    def part(self, examples: Sequence[Example], *, decision: float = 1.0, other: float = 1.0) -> Part:
        """Tensors of the examples; labels in the examples' order, every target token one, weighed as given."""
        starts = [e.frozen_length if self.activated else 0 for e in examples]
        frozen_NP, frozen_mask_NP = pad_rows(
            [e.tokens[self.num_shared : start] for e, start in zip(examples, starts, strict=True)],
            pad=self.pad,
            left=True,
        )
        trained_NS, trained_mask_NS = pad_rows(
            [e.tokens[start:] for e, start in zip(examples, starts, strict=True)], pad=self.pad, left=False
        )
        width = trained_NS.shape[1]
        labels = [
            (row * width + at - start - 1, e.tokens[at], decision if at == e.decision else other)
            for row, (e, start) in enumerate(zip(examples, starts, strict=True))
            for at in range(e.target_start, len(e.tokens))
        ]
        hidden_at, targets, weights = zip(*labels, strict=True)
        return Part(
            frozen_NP=frozen_NP,
            frozen_mask_NP=frozen_mask_NP,
            trained_NS=trained_NS,
            trained_mask_NS=trained_mask_NS,
            hidden_at_L=torch.tensor(hidden_at),
            target_L=torch.tensor(targets),
            weight_L=torch.tensor(weights, dtype=torch.float32),
        )


def in_parts(num_rows: int, *, widest: int) -> list[slice]:
    """In as few parts of nearly equal size as _PART_TOKENS allow for rows of up to `widest` tokens."""
    num_parts = -(-num_rows // max(1, _PART_TOKENS // widest))
    bounds = [round(i * num_rows / num_parts) for i in range(num_parts + 1)]
    return [slice(first, last) for first, last in pairwise(bounds)]


def pad_rows(rows: Sequence[Sequence[int]], *, pad: int, left: bool) -> tuple[Tensor, Tensor]:
    """Tokens and mask, both [rows, longest row]; the mask is 1 where a token is real."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return tokens, mask


class StepDataset(Dataset[Step]):
    """The plan as a data set whose items are whole steps."""

    def __init__(self, plan: Sequence[StepRows], collate: Callable[[StepRows], Step]) -> None:
        self._plan = plan
        self._collate = collate

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> Step:
        return self._collate(self._plan[index])
