"""Averages weights with those a stage began with, while it trains (SFA, arXiv 2501.05559). Knows no data and no files.

theta <- (1 - beta) * theta + beta * theta_o      after every p * T of T steps, and once at the end
"""

import math

import torch
from peft import PeftModel
from torch import nn


def averaging_steps(num_steps: int, share: float) -> frozenset[int]:
    """After which of `num_steps` steps to average: every `share` of them, at least one apart, and after the last.

    No more often than `share` says, where rounding has brought the steps nearer to one another.
    """
    apart = max(1, round(share * num_steps))
    before_the_last = math.ceil(1 / share - 1e-9) - 1
    return frozenset(range(apart, num_steps, apart)[:before_the_last]) | {num_steps}


class Averaging:
    """Holds theta_o, the trainable weights as they are when this is made, and averages where it is due."""

    def __init__(self, model: nn.Module, *, num_steps: int, share: float, beta: float) -> None:
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._origin = {name: p.detach().clone() for name, p in self._trained.items()}
        self._due = averaging_steps(num_steps, share)
        self._beta = beta

    @torch.no_grad()
    def after_step(self, made: int) -> None:
        """Averages if it is due after so many steps."""
        if made in self._due:
            for name, parameter in self._trained.items():
                parameter.lerp_(self._origin[name], self._beta)


def freeze_down_projections(model: PeftModel) -> None:
    """Leaves only B to train: with A the same on both sides, averaging B averages the product BA exactly.

    A second adapter's A would be frozen as well; there is none.
    """
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)


def unfreeze_adapter(model: PeftModel) -> None:
    """Both factors again, so that both are saved alike."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
