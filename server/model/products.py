"""Products with a weight, which lies in memory as the processor at hand reads it fastest. Knows matrices, no layers.

Processors that multiply bf16 numbers read a weight in oneDNN's blocked layout; others have no library that multiplies
bf16 weights at the speed of memory, so for them the kernels do it, and for all where weights are to be rounded to
int8. What neither takes is left to torch.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from server.model.native import Kernels, applies_to

# Legend: T tokens, I/O input and output width.

_TYPICAL_BATCH = 16  # tokens a step; oneDNN chooses the layout by it


class Product(Protocol):
    def __call__(self, x_TI: Tensor) -> Tensor:
        """[T, I] -> [T, O]: x W^T and the bias."""
        ...

    def dense(self) -> Tensor:
        """The weight [O, I] in plain layout; a copy or its own."""
        ...


def product_of(weight_OI: Tensor, bias_O: Tensor | None, kernels: Kernels | None, *, in_int8: bool = False) -> Product:
    """The fastest there is here; `in_int8` rounds the weight, which takes kernels."""
    if in_int8:
        assert kernels is not None, "only kernels read int8. This is a bug."
        return PanelProduct(*rounded_to_int8(weight_OI), bias_O, kernels)
    if kernels is not None and applies_to(weight_OI) and not multiplies_bf16(weight_OI.device):
        return PanelProduct(weight_OI, None, bias_O, kernels)
    if BlockedProduct.takes(weight_OI):
        return BlockedProduct(weight_OI, bias_O)
    return PlainProduct(weight_OI, bias_O)


def multiplies_bf16(device: torch.device) -> bool:
    """True where the processor multiplies bf16 numbers itself, and a bf16 base is therefore faster than an fp32 one."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def rounded_to_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [O, I] and fp32 [O]: a weight is about its byte times the scale of its output, whose largest becomes 127."""
    scale_O = weight_OI.abs().amax(dim=1).float() / 127
    divisor_O1 = torch.where(scale_O > 0, scale_O, 1)[:, None]
    return (weight_OI.float() / divisor_O1).round().to(torch.int8), scale_O


def multiply(x: Tensor, weight_OI: Tensor) -> Tensor:
    """[..., I] -> [..., O]: x W^T of a weight in plain layout; in fp32 where that is faster."""
    if weight_OI.dtype != torch.bfloat16 or multiplies_bf16(weight_OI.device):
        return F.linear(x, weight_OI)
    return F.linear(x.float(), weight_OI.float()).to(x.dtype)


class PlainProduct:
    """Torch's own."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._weight_OI, self._bias_O = weight_OI, bias_O

    def __call__(self, x_TI: Tensor) -> Tensor:
        return F.linear(x_TI, self._weight_OI, self._bias_O)

    def dense(self) -> Tensor:
        return self._weight_OI


class BlockedProduct:
    """oneDNN's: the operator that torch's own compiler emits for frozen models."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _TYPICAL_BATCH)
        self._bias_O = bias_O

    @staticmethod
    def takes(weight_OI: Tensor) -> bool:
        available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        on_cpu = available and weight_OI.device.type == "cpu" and weight_OI.dtype == torch.bfloat16
        return on_cpu and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def __call__(self, x_TI: Tensor) -> Tensor:
        y_TO: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, self._packed, self._bias_O, "none", [], "")
        return y_TO

    def dense(self) -> Tensor:
        return self._packed.to_dense()


class PanelProduct:
    """The kernels' own, for a weight in bf16, or in int8 with a scale for each output. A row's numbers do not depend on
    the rows beside it."""

    def __init__(self, weight_OI: Tensor, scale_O: Tensor | None, bias_O: Tensor | None, kernels: Kernels) -> None:
        self._kernels = kernels
        self._panels = kernels.panels(weight_OI)
        self._bias_O = bias_O
        self.width, self.depth = weight_OI.shape
        columns = self._panels.shape[0] * self._panels.shape[2]
        self._scales = None if scale_O is None else F.pad(scale_O, (0, columns - self.width))

    def __call__(self, x_TI: Tensor) -> Tensor:
        return self._kernels.multiply(x_TI, self._panels, self._scales, self._bias_O, self.width)

    @property
    def row(self) -> tuple[int, ...]:
        """The beginning of a `Site` in `kernels.c`."""
        scales, bias = (0 if tensor is None else tensor.data_ptr() for tensor in (self._scales, self._bias_O))
        return self._panels.data_ptr(), scales, bias, self.depth, self.width

    def dense(self) -> Tensor:
        weight_OI = self._panels.transpose(1, 2).reshape(-1, self.depth)[: self.width]
        return weight_OI if self._scales is None else (weight_OI * self._scales[: self.width, None]).bfloat16()
