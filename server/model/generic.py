"""Any decoder-only model through transformers' own modules. Knows layers and weights; nothing of sequences or experts.

Attention and linear layers are exchanged in place; all else runs as transformers wrote it. `fused` does the same for
the Llama family in fewer operations.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.errors import BaseModelError
from server.model.attention import IMPLEMENTATION, AttentionPlan
from server.model.logits import Logits, Wanted
from server.model.lora import Arena, LoraArenas, NewArena
from server.model.lora_plan import LoraPlan
from server.model.states import StateSums, decoder_layers, watched

# Legend: T tokens in the step, I/O input and output width, N tokens some of whose logits are wanted, V vocabulary.


class _Switch:
    """What the adapted layers look at during a step."""

    def __init__(self) -> None:
        self.plan: LoraPlan | None = None
        self.num_tokens = 0


class _AdaptedLinear(nn.Module):
    """A linear layer with an arena beside it."""

    def __init__(self, base: nn.Module, arena: Arena, switch: _Switch) -> None:
        super().__init__()
        self.base = base
        self._arena = arena
        self._switch = switch

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O], of the step's tokens in their order."""
        y: Tensor = self.base(x)
        x_TI = x.reshape(-1, x.shape[-1])
        if len(x_TI) != self._switch.num_tokens:
            raise BaseModelError(
                f"this architecture gives a linear layer {len(x_TI)} of {self._switch.num_tokens} tokens, so that no "
                "expert could adapt it: it cannot be served"
            )
        self._arena.add(y.view(-1, y.shape[-1]), x_TI, self._switch.plan)
        return y


class GenericDecoder:
    """A model with adapted linear layers. Takes it over: it only runs here from now on."""

    def __init__(self, model: PreTrainedModel, linears: Sequence[str], new_arena: NewArena) -> None:
        model.set_attn_implementation(IMPLEMENTATION)
        self._model = model
        self._layers = decoder_layers(model)
        self._switch = _Switch()
        arenas = []
        for path in linears:
            parent_path, _, attribute = path.rpartition(".")
            parent = model.get_submodule(parent_path)
            arenas.append(new_arena([path]))
            setattr(parent, attribute, _AdaptedLinear(getattr(parent, attribute), arenas[-1], self._switch))
        self.arenas = LoraArenas(arenas)

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        attention: AttentionPlan,
        lora: LoraPlan | None,
        wanted: Wanted,
        states: StateSums | None = None,
    ) -> Logits:
        """The wanted logits. `states` is told what enters each layer."""
        with nullcontext() if states is None else watched(self._layers, states):
            return self._forward(tokens_T, positions_T, attention, lora, wanted)

    def _forward(
        self, tokens_T: Tensor, positions_T: Tensor, attention: AttentionPlan, lora: LoraPlan | None, wanted: Wanted
    ) -> Logits:
        self._switch.plan, self._switch.num_tokens = lora, len(tokens_T)
        inputs = {
            "input_ids": tokens_T[None],
            "position_ids": positions_T[None],
            "use_cache": False,
            "attention_plan": attention,
        }
        places = torch.cat((wanted.all_W, wanted.choosing_C))
        if not len(places):
            self._model.base_model(**inputs)
            return Logits(torch.empty(0, 0), torch.empty(0, 2))
        logits_1NV: Tensor = self._model(**inputs, logits_to_keep=places).logits
        return Logits.split(logits_1NV[0], wanted)
