"""The decoders of the Llama family as few, large operations. Knows layers and weights; nothing of sequences or experts.

A decode step of a small model is bound by the number of operations and by how its weights lie in memory. So query, key
and value are one product, gate and up another, each with its weight laid out for the processor (`products`); what lies
between them is done by `native` kernels, or, without those, by torch. Other architectures run through transformers'
own modules (`generic`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from server.model.attention import AttentionPlan
from server.model.lent import Counter, lend
from server.model.logits import Logits, Wanted
from server.model.lora import Arena, LoraArenas, NewArena
from server.model.lora_plan import LoraPlan
from server.model.native import Kernels
from server.model.native_layers import NativeLayer, NativeLayers
from server.model.products import PanelProduct, PlainProduct, Product, product_of
from server.model.states import StateSums

# Legend: T tokens in the step, N of them with logits that are wanted (W and C, see `logits`), D head width, F width of
# the MLP, V vocabulary.

_FAMILY = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


def fusible(config: PreTrainedConfig) -> bool:
    """True for the causal models this module computes: pre-norm RMSNorm, rotary positions, SwiGLU."""
    return type(config) in {model.config_class for model in _FAMILY} and config.hidden_act == "silu"


def fuse(linears: Sequence[nn.Linear], kernels: Kernels | None, *, in_int8: bool = False) -> Product:
    """Linear layers that read the same input, as one product [T, I] -> [T, O of all]; `in_int8` as `product_of` takes
    it."""
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    weight_OI = torch.cat([linear.weight.detach() for linear in linears])
    return product_of(weight_OI, torch.cat(biases) if biases else None, kernels, in_int8=in_int8)


@dataclass(frozen=True)
class _Site:
    """One fused product and the experts' terms beside it."""

    product: Product
    arena: Arena

    def __call__(self, x_TI: Tensor, plan: LoraPlan | None) -> Tensor:
        y_TO = self.product(x_TI)
        self.arena.add(y_TO, x_TI, plan)
        return y_TO


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> "_Norm":
        return cls(module.weight.detach(), module.variance_epsilon)

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


@dataclass(frozen=True)
class _Layer:
    input_norm: _Norm
    qkv: _Site
    head_norms: tuple[_Norm, _Norm] | None  # of queries and keys
    out: _Site
    mlp_norm: _Norm
    gate_up: _Site
    down: _Site
    scale: float
    window: int | None

    @property
    def sites(self) -> tuple[_Site, ...]:
        return self.qkv, self.out, self.gate_up, self.down


class FusedDecoder:
    """A model of the Llama family. Takes its weights over and lends them to the model's own modules, which go on
    computing, with gradients too, though not fast. `in_int8`: with all weights of products rounded, by `products`."""

    def __init__(
        self, model: PreTrainedModel, new_arena: NewArena, kernels: Kernels | None = None, *, in_int8: bool = False
    ) -> None:
        body: Any = model.base_model
        self._kernels = kernels
        self._in_int8 = in_int8
        self._counter = Counter()
        self._num_heads: int = model.config.num_attention_heads
        self._num_kv_heads: int = model.config.num_key_value_heads
        self._embedding: Tensor = body.embed_tokens.weight.detach()
        self._rotary: nn.Module = body.rotary_emb
        self._norm = _Norm.of(body.norm)
        head: nn.Linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._head = fuse([head], kernels, in_int8=in_int8)
        self._head_weight = head.weight.detach()
        self._head_bias = None if head.bias is None else head.bias.detach()
        (lent,) = lend(PlainProduct(self._head_weight, None), [head], self._counter)
        model.set_output_embeddings(lent)  # type: ignore[no-untyped-call]
        self._arenas: list[Arena] = []
        self._layers = []
        for index, layer in enumerate(body.layers):
            self._layers.append(self._layer(f"model.layers.{index}", layer, new_arena))
        self.arenas = LoraArenas(self._arenas, kernels)
        self._native = _native_layers(self._layers, kernels, self._num_heads)

    def _layer(self, path: str, layer: Any, new_arena: NewArena) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return _Layer(
            input_norm=_Norm.of(layer.input_layernorm),
            qkv=self._site(f"{path}.self_attn", attention, ("q_proj", "k_proj", "v_proj"), new_arena),
            head_norms=_head_norms(attention),
            out=self._site(f"{path}.self_attn", attention, ("o_proj",), new_arena),
            mlp_norm=_Norm.of(layer.post_attention_layernorm),
            gate_up=self._site(f"{path}.mlp", mlp, ("gate_proj", "up_proj"), new_arena),
            down=self._site(f"{path}.mlp", mlp, ("down_proj",), new_arena),
            scale=attention.scaling,
            window=_window(attention),
        )

    def _site(self, path: str, module: Any, names: Sequence[str], new_arena: NewArena) -> _Site:
        self._arenas.append(new_arena([f"{path}.{name}" for name in names]))
        linears = [getattr(module, name) for name in names]
        product = fuse(linears, self._kernels, in_int8=self._in_int8)
        for name, lent in zip(names, lend(product, linears, self._counter), strict=True):
            setattr(module, name, lent)
        return _Site(product, self._arenas[-1])

    @property
    def slides(self) -> bool:
        """Whether some layer's attention sees only so many tokens back."""
        return any(layer.window is not None for layer in self._layers)

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
        hidden_TI = F.embedding(tokens_T, self._embedding)
        rotation = self._rotation(hidden_TI, positions_T)
        if self._native is not None and states is None:
            delta_TI = self._native.run(hidden_TI, rotation, attention, lora)
        else:
            hidden_TI, delta_TI = self._layer_by_layer(hidden_TI, rotation, attention, lora, states)
        places = torch.cat((wanted.all_W, wanted.choosing_C))
        if not len(places):
            return Logits(hidden_TI.new_empty(0, 0), torch.empty(0, 2))
        _, x_NI = self._add_norm(hidden_TI[places], delta_TI[places], self._norm)
        all_WI, choosing_CI = x_NI[: len(wanted.all_W)], x_NI[len(wanted.all_W) :]
        return Logits(
            self._head(all_WI) if len(all_WI) else hidden_TI.new_empty(0, 0),
            self._logits_between(choosing_CI, wanted.between_C2),
        )

    def _layer_by_layer(
        self,
        hidden_TI: Tensor,
        rotation: tuple[Tensor, Tensor],
        attention: AttentionPlan,
        lora: LoraPlan | None,
        states: StateSums | None,
    ) -> tuple[Tensor, Tensor]:
        """What comes out of all layers as a sum of two. `NativeLayers` must equal it, bit for bit."""
        delta_TI: Tensor | None = None
        for index, layer in enumerate(self._layers):
            hidden_TI, x_TI = self._add_norm(hidden_TI, delta_TI, layer.input_norm)
            if states is not None:
                states.add(hidden_TI)
            attended = self._attend(index, layer, layer.qkv(x_TI, lora), rotation, attention)
            hidden_TI, x_TI = self._add_norm(hidden_TI, layer.out(attended, lora), layer.mlp_norm)
            delta_TI = layer.down(self._swiglu(layer.gate_up(x_TI, lora)), lora)
        assert delta_TI is not None, "a decoder has layers. This is a bug."
        return hidden_TI, delta_TI

    def _logits_between(self, x_CI: Tensor, between_C2: Tensor) -> Tensor:
        """[C, 2] fp32: two columns of the output layer for each token."""
        weight_C2I = F.embedding(between_C2, self._head_weight).float()
        logits_C2 = torch.einsum("ci,cki->ck", x_CI.float(), weight_C2I)
        return logits_C2 if self._head_bias is None else logits_C2 + self._head_bias[between_C2].float()

    def _add_norm(self, hidden_TI: Tensor, delta_TI: Tensor | None, norm: _Norm) -> tuple[Tensor, Tensor]:
        """The sum of both, and that normalised. May reuse the memory of `hidden_TI`."""
        if self._kernels is not None:
            return hidden_TI, self._kernels.add_norm(hidden_TI, delta_TI, norm.weight, norm.epsilon)
        hidden_TI = hidden_TI if delta_TI is None else hidden_TI + delta_TI
        return hidden_TI, norm(hidden_TI)

    def _swiglu(self, gate_up: Tensor) -> Tensor:
        """[T, 2 F] -> [T, F]"""
        if self._kernels is not None:
            return self._kernels.swiglu(gate_up)
        gate_TF, up_TF = gate_up.chunk(2, dim=-1)
        return F.silu(gate_TF).mul_(up_TF)

    def _rotation(self, hidden_TI: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines [T, D], so that rotating x is x * cos + roll(x, D / 2) * sin; fp32 for kernels."""
        cos, sin = self._rotary(hidden_TI[None], positions_T[None])
        half = sin.shape[-1] // 2
        signed = torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)
        return (cos[0], signed) if self._kernels is None else (cos[0].float(), signed.float())

    def _attend(
        self,
        index: int,
        layer: _Layer,
        qkv: Tensor,
        rotation: tuple[Tensor, Tensor],
        attention: AttentionPlan,
    ) -> Tensor:
        """[T, H * D] of queries, keys and values [T, (H + 2 K) * D] side by side."""
        num_queries, num_rotated = self._num_heads, self._num_heads + self._num_kv_heads
        qkv = qkv.view(qkv.shape[0], num_rotated + self._num_kv_heads, -1)
        if layer.head_norms is not None:
            of_queries, of_keys = layer.head_norms
            normed = (of_queries(qkv[:, :num_queries]), of_keys(qkv[:, num_queries:num_rotated]))
            qkv = torch.cat((*normed, qkv[:, num_rotated:]), dim=1)
        if self._kernels is not None:
            cache = attention.kv.layers[index]
            self._kernels.rotate_and_store(qkv, *rotation, cache, attention.place_T, num_rotated=num_rotated)
            return attention.read(index, qkv[:, :num_queries], scale=layer.scale, window=layer.window).flatten(1)
        cos, sin = rotation[0][:, None], rotation[1][:, None]
        rotated = qkv[:, :num_rotated]
        rotated = torch.addcmul(rotated * cos, rotated.roll(rotated.shape[-1] // 2, -1), sin)
        kv = torch.cat((rotated[:, num_queries:], qkv[:, num_rotated:]), dim=1)
        output = attention.attend(index, rotated[:, :num_queries], kv, scale=layer.scale, window=layer.window)
        return output.flatten(1)


def _native_layers(layers: Sequence[_Layer], kernels: Kernels | None, num_heads: int) -> NativeLayers | None:
    """All of them in one call, where the kernels make their products, nothing else lies between, and they are alike."""
    alike = {(layer.scale, norm.epsilon) for layer in layers for norm in (layer.input_norm, layer.mlp_norm)}
    if kernels is None or len(alike) > 1 or any(layer.head_norms is not None for layer in layers):
        return None
    found = []
    for layer in layers:
        products = [site.product for site in layer.sites]
        own = [product for product in products if isinstance(product, PanelProduct)]
        if len(own) < len(products):
            return None
        sites = list(zip(own, (site.arena for site in layer.sites), strict=True))
        found.append(NativeLayer(layer.input_norm.weight, layer.mlp_norm.weight, layer.window, sites))
    ((scale, epsilon),) = alike
    return NativeLayers(found, kernels, num_heads=num_heads, scale=scale, epsilon=epsilon)


def _head_norms(attention: Any) -> tuple[_Norm, _Norm] | None:
    return (_Norm.of(attention.q_norm), _Norm.of(attention.k_norm)) if hasattr(attention, "q_norm") else None


def _window(attention: Any) -> int | None:
    """Qwen says for each layer whether its attention slides, Mistral for all."""
    holder = attention if hasattr(attention, "sliding_window") else attention.config
    window: int | None = getattr(holder, "sliding_window", None)
    return window
