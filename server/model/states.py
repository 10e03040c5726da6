"""What a prompt looks like on its way through the base: the mean hidden state that enters each decoder layer.

L2R (arXiv 2408.09053) routes by it. Knows layers and tokens; nothing of gates or sequences.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Legend: T tokens in the step, L decoder layers, D hidden width, P prompts.


class StateSums:
    """Sums of hidden states over spans of a step's tokens, layer by layer, while the step runs."""

    def __init__(self, spans: Sequence[tuple[int, int]]) -> None:
        self._spans = spans
        self._sums: list[list[Tensor]] = [[] for _ in spans]

    def add(self, hidden_TD: Tensor) -> None:
        """What enters the next layer."""
        for (start, stop), sums in zip(self._spans, self._sums, strict=True):
            sums.append(hidden_TD[start:stop].sum(dim=0, dtype=torch.float32))

    def of(self, span: int) -> Tensor:
        """[L, D] fp32 of one span, once all layers have run."""
        return torch.stack(self._sums[span])


def decoder_layers(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The model's decoder layers, in order."""
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    assert lists, "a decoder-only model has a list of layers. This is a bug."
    return list(lists[0])


@contextmanager
def watched(layers: Sequence[nn.Module], see: "StateSums") -> Iterator[None]:
    """Tells `see` what enters each of transformers' own layers, [1, T, D], as long as the block runs."""

    def look(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        hidden_1TD: Tensor = arguments[0] if arguments else keywords["hidden_states"]
        see.add(hidden_1TD[0])

    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def mean_states(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """[P, L, D] fp32: what the engine gives for each of these prompts, computed by transformers alone, one by one."""
    layers = decoder_layers(model)
    means = []
    for tokens in prompts:
        sums = StateSums([(0, len(tokens))])
        with watched(layers, sums):
            model.base_model(input_ids=torch.tensor([list(tokens)], device=model.device), use_cache=False)
        means.append(sums.of(0).cpu() / len(tokens))
    return torch.stack(means)
