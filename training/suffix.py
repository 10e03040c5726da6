"""Runs batches through base and adapter, with gradients only where the adapter is active. Knows no files and no recipe.

An activated expert leaves the keys and values of the prompt as the base computes them. So the prompt goes through the
base alone, without gradients, and only the suffix is trained through: exact, and a fraction of the cost.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from training.batches import Part, Step, on_device

# N rows, P frozen prompt tokens, S trained tokens, L labelled positions, D width, V vocabulary.


class SuffixRunner:
    """Runs parts of batches through one model.

    The adapter in `model` must be a plain one: on the suffix alone an activated adapter is active everywhere. `shared`
    are the tokens every frozen prompt begins with (a system prompt, say); they are computed once, and rows come
    without them.
    """

    def __init__(self, model: PeftModel, shared: Sequence[int] = ()) -> None:
        self._model = model
        self._base = cast(PreTrainedModel, model.get_base_model())
        self._num_shared = len(shared)
        self._shared = self._keys_and_values(shared) if shared else ()

    def step_losses(self, step: Step) -> Iterator[Tensor]:
        """Weighted cross entropy of the step's parts, one after the other."""
        return (self._part_loss(self.on_device(part)) for part in step["parts"])

    def on_device(self, part: Part) -> Part:
        """As the other methods take it: where the model is."""
        return on_device(part, self._base.device)

    def label_logits(self, part: Part) -> Tensor:
        """[L, V] fp32, only where labels are: with a large vocabulary the head is the largest single cost."""
        hidden_LD = self.trained_hidden_states(part).flatten(0, 1)[part["hidden_at_L"]]
        head: nn.Module = self._base.get_output_embeddings()  # type: ignore[no-untyped-call]
        return as_the_model_scales(head(hidden_LD).float(), self._base.config)

    def trained_hidden_states(self, part: Part) -> Tensor:
        """[N, S, D] of the trained tokens, the adapter active on all of them and on none of the frozen ones."""
        num_rows, num_frozen = part["frozen_NP"].shape
        shared_mask = part["frozen_mask_NP"].new_ones(num_rows, self._num_shared)
        mask = torch.cat([shared_mask, part["frozen_mask_NP"], part["trained_mask_NS"]], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = self._shared_cache(num_rows)
        body = self._base.base_model
        start = self._num_shared + num_frozen
        if num_frozen:
            with torch.no_grad(), self._model.disable_adapter():
                body(
                    input_ids=part["frozen_NP"],
                    attention_mask=mask[:, :start],
                    position_ids=positions[:, self._num_shared : start],
                    past_key_values=cache,
                    use_cache=True,
                )
        output = body(
            input_ids=part["trained_NS"],
            attention_mask=mask,
            position_ids=positions[:, start:],
            past_key_values=cache if start else None,
            use_cache=start > 0,
        )
        hidden_NSD: Tensor = output.last_hidden_state
        return hidden_NSD

    def _part_loss(self, part: Part) -> Tensor:
        losses_L = functional.cross_entropy(self.label_logits(part), part["target_L"], reduction="none")
        return (losses_L * part["weight_L"]).sum()

    def _keys_and_values(self, tokens: Sequence[int]) -> tuple[tuple[Tensor, Tensor], ...]:
        """Of every layer, [1, heads, tokens, head width]."""
        cache = DynamicCache()
        with torch.no_grad(), self._model.disable_adapter():
            self._base.base_model(
                input_ids=torch.tensor([list(tokens)], device=self._base.device), past_key_values=cache, use_cache=True
            )
        return tuple((layer.keys, layer.values) for layer in cast(list[Any], cache.layers))

    def _shared_cache(self, num_rows: int) -> DynamicCache:
        """A cache of its own for a batch, because the model appends to it."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._shared):
            cache.update(keys.expand(num_rows, -1, -1, -1), values.expand(num_rows, -1, -1, -1), layer)
        return cache


def as_the_model_scales(logits_LV: Tensor, config: PreTrainedConfig) -> Tensor:
    """What some families do behind the head: Cohere multiplies, Granite divides, Gemma caps.

    What a family does not do is left out: on a CPU each pass over [L, V] takes as long as a layer.
    """
    if (scale := getattr(config, "logit_scale", 1.0)) != 1.0:
        logits_LV = logits_LV * scale
    if (scaling := getattr(config, "logits_scaling", 1.0)) != 1.0:
        logits_LV = logits_LV / scaling
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    return logits_LV if cap is None else cap * torch.tanh(logits_LV / cap)
