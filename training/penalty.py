"""Losses that hold weights near where they began: L2 and EWC (arXiv 1612.00796). Knows no data files and no recipe.

loss + strength / 2 * sum_i F_i * (theta_i - theta_o_i)^2        L2: every F_i is 1
EWC: F_i is the mean over rows of (d log p(answer | prompt) / d theta_i)^2, at theta_o; tasks' F are summed
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from training.batches import Collator, Step
from training.data import Example
from training.loop import StepLoss


class Penalised:
    """A loss with the penalty on top; theta_o are the trainable weights as they are when this is made."""

    def __init__(
        self, loss: StepLoss, model: nn.Module, *, strength: float, importance: Mapping[str, Tensor] | None = None
    ) -> None:
        self._loss = loss
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._origin = {name: p.detach().clone() for name, p in self._trained.items()}
        self._strength = strength
        self._importance = None
        if importance is not None:
            self._importance = {name: importance[name].to(p.device) for name, p in self._trained.items()}

    def step_losses(self, step: Step) -> Iterator[Tensor]:
        yield from self._loss.step_losses(step)
        yield self.penalty()

    def penalty(self) -> Tensor:
        terms = [self._term(name, parameter) for name, parameter in self._trained.items()]
        return self._strength / 2 * torch.stack(terms).sum()

    def _term(self, name: str, parameter: Tensor) -> Tensor:
        squared = (parameter - self._origin[name]).square()
        return squared.sum() if self._importance is None else (self._importance[name] * squared).sum()


def fisher(
    loss: StepLoss, model: nn.Module, examples: Sequence[Example], *, pad: int, activated: bool = False
) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information of the trainable weights: one backward pass a row.

    A row's log likelihood is the sum over its answer's tokens.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {name: torch.zeros_like(p) for name, p in trained.items()}
    collator = Collator(activated=activated, decision_weight=1.0, pad=pad)
    for example in examples:
        model.zero_grad()
        part = collator.part([example])
        step = Step(parts=[part], ids=[example.row.id], num_tokens=len(example.tokens))
        for term in loss.step_losses(step):
            term.backward()  # type: ignore[no-untyped-call]
        for name, parameter in trained.items():
            if parameter.grad is not None:
                found[name] += parameter.grad.square() / len(examples)
    model.zero_grad()
    return found
