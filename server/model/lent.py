"""Linear layers whose weights a fused product has taken over: they compute with them still, and with gradients.

Knows weights and their rows; nothing of models, adapters or steps. A fused product may keep its weight in a layout that
only inference reads (`fused`). Its weight is made plain for as long as one product takes, forwards and again backwards,
so that the model is in memory once, whatever runs through it.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function

from server.model.products import Product, multiply

# Legend: I/O input and output width, of all linears side by side in a product.


class Counter:
    """Hands out the plain weight of one product at a time, for those beside each other ask one after the other.

    One for a whole model, used by one thread at a time.
    """

    def __init__(self) -> None:
        self._last: tuple[Product, Tensor] | None = None

    def weight(self, product: Product) -> Tensor:
        if self._last is None or self._last[0] is not product:
            self._last = (product, product.dense())
        return self._last[1]


class LentLinear(nn.Module):
    """Some rows of a product's weight, as a layer of their own. Gradients reach its input, never the weight."""

    def __init__(self, product: Product, rows: slice, bias_O: Tensor | None, counter: Counter) -> None:
        super().__init__()
        self._product = product
        self._rows = rows
        self._bias_O = bias_O
        self._counter = counter

    @property
    def plain_weight(self) -> Tensor:
        """[O, I]"""
        return self._counter.weight(self._product)[self._rows]

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]"""
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self._bias_O is None else y + self._bias_O


class _Product(Function):
    """x W^T that keeps no weight for the way back."""

    @staticmethod
    def forward(context: Any, x: Tensor, linear: LentLinear) -> Tensor:
        context.linear = linear
        return multiply(x, linear.plain_weight)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return multiply(gradients[0], context.linear.plain_weight.T), None


def lend(product: Product, linears: Sequence[nn.Linear], counter: Counter) -> list[LentLinear]:
    """Replacements for the linears whose weights the product holds side by side, in that order."""
    lent, first = [], 0
    for linear in linears:
        rows = slice(first, first + linear.out_features)
        lent.append(LentLinear(product, rows, None if linear.bias is None else linear.bias.detach(), counter))
        first = rows.stop
    return lent
