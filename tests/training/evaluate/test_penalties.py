"""L2 and EWC: values and gradients against their formulas."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from server.model.base import load_base
from training.batches import Step
from training.evaluate.adapters import encode
from training.evaluate.stream import Sample
from training.evaluate.units import BaseSource
from training.penalty import Penalised, fisher
from training.suffix import SuffixRunner
from training.tuning import fresh_adapter

STEP = Step(parts=[], ids=[], num_tokens=0)


class Quadratic:
    """A loss whose gradient is known: the sum of squares of the weights."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer

    def step_losses(self, step: Step) -> Iterator[Tensor]:  # noqa: ARG002
        yield self._layer.weight.square().sum()


@pytest.mark.parametrize("weighed", [False, True])
def test_value_and_gradient_are_those_of_the_formula(weighed: bool) -> None:
    layer = nn.Linear(3, 2, bias=False)
    importance = {"weight": torch.rand(2, 3)} if weighed else None
    origin = layer.weight.detach().clone()
    loss = Penalised(Quadratic(layer), layer, strength=3.0, importance=importance)
    assert float(loss.penalty().detach()) == 0
    layer.weight.data += torch.randn(2, 3)
    for term in loss.step_losses(STEP):
        term.backward()
    weight = layer.weight.detach()
    factor = importance["weight"] if importance else torch.ones(2, 3)
    torch.testing.assert_close(loss.penalty().detach(), 1.5 * (factor * (weight - origin) ** 2).sum())
    torch.testing.assert_close(layer.weight.grad, 2 * weight + 3.0 * factor * (weight - origin))


def test_importance_is_brought_to_where_the_weights_are() -> None:
    layer = nn.Linear(3, 2, bias=False, device="meta")
    loss = Penalised(Quadratic(layer), layer, strength=3.0, importance={"weight": torch.rand(2, 3)})
    assert loss.penalty().device.type == "meta"


def test_the_fisher_is_the_mean_of_squared_gradients_of_single_rows(base_source: BaseSource) -> None:
    """Against the obvious loop: every row alone, its whole sequence, all logits."""
    base = load_base(base_source.source, dtype="fp32", device="cpu", cache=Path(base_source.cache))
    model = fresh_adapter(base, rank=2, alpha=4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    samples = [Sample(f"{i}", "jump", f"jump {i}", f"{i} dogs") for i in range(3)]
    examples = encode(base, samples)
    found = fisher(SuffixRunner(model), model, examples, pad=1)

    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    for example in examples:
        model.zero_grad()
        tokens = torch.tensor([example.tokens])
        logits = model(input_ids=tokens).logits[0]
        start = example.target_start
        functional.cross_entropy(logits[start - 1 : -1], tokens[0, start:], reduction="sum").backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                wanted[name] += parameter.grad.square() / 3
    assert found.keys() == wanted.keys()
    assert max(float(value.max()) for value in wanted.values()) > 1e-6
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-7)
