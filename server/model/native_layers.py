"""All layers of a step in one call of the kernels, where they make the products too. Knows where layers lie in memory;
nothing of how one is computed (`kernels.c`; `fused` has the same as a loop).

A step of a small model is hundreds of short operations. Asked for one by one, the interpreter is a tenth of a step,
threads fall asleep between them, and whoever else wants the interpreter holds the step up at each product.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.model.attention import AttentionPlan
from server.model.lora import Arena
from server.model.lora_plan import LoraPlan
from server.model.native import Kernels, NativeStep
from server.model.native_attention import NativeCopies, NativeGroup
from server.model.products import PanelProduct

# Legend: T tokens in the step, I hidden width, F width of the MLP, H query heads, K key/value heads, D head width.


@dataclass(frozen=True)
class NativeLayer:
    """What the kernels read of a layer; sites are those of queries, keys and values, of the way out, of gate and up,
    and of the way down."""

    input_norm: Tensor
    mlp_norm: Tensor
    window: int | None
    sites: Sequence[tuple[PanelProduct, Arena]]

    @property
    def row(self) -> list[int]:
        """As `Layer` in `kernels.c`."""
        row = [self.input_norm.data_ptr(), self.mlp_norm.data_ptr(), self.window or 0]
        for product, arena in self.sites:
            row += product.row + arena.row
        return row


class NativeLayers:
    """A decoder's layers, all with `num_heads` query heads, one scale of scores and one epsilon of norms."""

    def __init__(
        self, layers: Sequence[NativeLayer], kernels: Kernels, *, num_heads: int, scale: float, epsilon: float
    ) -> None:
        self._layers = layers
        self._kernels = kernels
        self._table = torch.tensor([layer.row for layer in layers])
        self._num_heads = num_heads
        self._scale = scale
        self._epsilon = epsilon
        sites = layers[0].sites
        self._widest_input = max(product.depth for product, _ in sites)
        self._most_terms = max(arena.num_terms for _, arena in sites)
        self._qkv_width, self._gate_up_width = sites[0][0].width, sites[2][0].width

    def run(
        self, hidden_TI: Tensor, rotation: tuple[Tensor, Tensor], attention: AttentionPlan, lora: LoraPlan | None
    ) -> Tensor:
        """What the last layer adds to `hidden_TI`, which the others have been added to, in place."""
        tokens, width = hidden_TI.shape
        delta_TI = torch.empty_like(hidden_TI)
        step = NativeStep(tokens=tokens, width=width, scale=self._scale, epsilon=self._epsilon)
        step.lend("hidden", hidden_TI)
        step.lend("delta", delta_TI)
        step.lend("normed", torch.empty_like(hidden_TI))
        step.lend("qkv", hidden_TI.new_empty(tokens, self._qkv_width))
        step.lend("gate_up", hidden_TI.new_empty(tokens, self._gate_up_width))
        step.lend("active", hidden_TI.new_empty(tokens, self._gate_up_width // 2))
        step.lend("room", torch.empty(tokens, self._widest_input))
        for name, turned_TD in zip(("cos", "sin"), rotation, strict=True):
            step.lend(name, turned_TD)
        self._add_attention(step, attention)
        if lora is not None:
            self._add_experts(step, lora)
        self._kernels.run_layers(self._table, step)
        return delta_TI

    def _add_attention(self, step: NativeStep, attention: AttentionPlan) -> None:
        (group,) = attention.groups
        assert isinstance(group, NativeGroup), "planned without kernels. This is a bug."
        spans, caches = group.spans, attention.kv.layers
        _, both, step.block_tokens, step.D = caches[0].shape
        step.heads, step.kv_heads, step.families = self._num_heads, both // 2, spans.num_families
        step.lend("cache", attention.kv.pointers)
        step.lend("place", attention.place_T)
        step.lend("attended", caches[0].new_empty(step.tokens, step.heads, step.D))
        for name, numbers in spans.tensors.items():
            step.lend(name, numbers)
        if attention.copies is not None:
            assert isinstance(attention.copies, NativeCopies), "planned without kernels. This is a bug."
            step.num_copies = len(attention.copies.table)
            step.lend("copies", attention.copies.table)
        step.threads = torch.get_num_threads()
        step.scratch_size = self._kernels.attend_scratch(spans, step.heads // step.kv_heads, step.D, step.block_tokens)
        step.lend("scratch", torch.empty(step.threads, step.scratch_size))

    def _add_experts(self, step: NativeStep, lora: LoraPlan) -> None:
        runs = lora.native
        assert runs is not None, "planned without kernels. This is a bug."
        step.num_runs = len(runs.table)
        step.lend("runs", runs.table)
        step.lend("slots", runs.slots)
        step.lend("weight", torch.tensor([runs.weights(layer) for layer in range(len(self._layers))]))
        step.lend("used", torch.tensor([[arena.used_by(lora) for _, arena in layer.sites] for layer in self._layers]))
        step.lend("h", torch.empty(runs.num_pairs, self._most_terms))
