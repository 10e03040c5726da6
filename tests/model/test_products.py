"""Every layout of a weight against the plain product, and who gets which."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from server.model import products
from server.model.native import Kernels
from server.model.products import BlockedProduct, PanelProduct, PlainProduct, multiply, product_of, rounded_to_int8

SHAPES = [(96, 64), (40, 24), (1, 5), (515, 64)]  # outputs that fill their panels and such that do not
ROWS = [1, 2, 3, 4, 5, 6, 7, 13, 100]


def made(rows: int, shape: tuple[int, int], *, biased: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(*size, generator=generator).bfloat16() for size in ((rows, shape[1]), shape))
    return x, weight, torch.randn(shape[0], generator=generator).bfloat16() if biased else None


def in_fp32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float())


def panels(weight: Tensor, bias: Tensor | None, kernels: Kernels, *, in_int8: bool) -> PanelProduct:
    if in_int8:
        return PanelProduct(*rounded_to_int8(weight), bias, kernels)
    return PanelProduct(weight, None, bias, kernels)


@pytest.mark.parametrize("in_int8", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
def test_panels_round_the_sum_once(
    every_kernels: list[Kernels], rows: int, shape: tuple[int, int], biased: bool, in_int8: bool
) -> None:
    x, weight, bias = made(rows, shape, biased=biased)
    number_OI, scale_O = rounded_to_int8(weight)
    expected = in_fp32(x, number_OI * scale_O[:, None] if in_int8 else weight, bias)
    for kernels in every_kernels:
        actual = panels(weight, bias, kernels, in_int8=in_int8)(x)
        torch.testing.assert_close(actual.float(), expected, rtol=2**-8, atol=1e-4)


def test_int8_is_off_by_half_a_step_at_most() -> None:
    """And nothing becomes of an output without weights."""
    _, weight, _ = made(1, (96, 64), biased=False)
    weight[7] = 0
    weight[8] *= 1e-30
    number_OI, scale_O = rounded_to_int8(weight)
    assert number_OI.abs().amax(dim=1).tolist() == [0 if row == 7 else 127 for row in range(96)]
    assert bool(((number_OI * scale_O[:, None] - weight).abs() <= 0.5001 * scale_O[:, None]).all())


@pytest.mark.parametrize("in_int8", [False, True])
@pytest.mark.parametrize("rows", ROWS)
def test_a_row_of_panels_is_the_same_among_any_others(every_kernels: list[Kernels], rows: int, in_int8: bool) -> None:
    x, weight, bias = made(rows, (515, 64), biased=True)
    for kernels in every_kernels:
        product = panels(weight, bias, kernels, in_int8=in_int8)
        alone = torch.cat([product(row[None]) for row in x])
        assert torch.equal(product(x), alone)


def test_rows_that_lie_apart_are_multiplied_where_they_are(kernels: Kernels) -> None:
    x, weight, bias = made(7, (40, 24), biased=True)
    apart = torch.stack((x, x * 2), dim=1)[:, 0]
    assert not apart.is_contiguous()
    product = panels(weight, bias, kernels, in_int8=False)
    assert torch.equal(product(apart), product(x))


def test_what_is_no_number_stays_in_its_row(every_kernels: list[Kernels]) -> None:
    x, weight, _ = made(7, (40, 24), biased=False)
    x[3, 5] = float("nan")
    for kernels in every_kernels:
        product = panels(weight, None, kernels, in_int8=False)
        assert product(x).isnan().any(dim=1).tolist() == [row == 3 for row in range(7)]


@pytest.mark.skipif(not BlockedProduct.takes(torch.empty(1, dtype=torch.bfloat16)), reason="no oneDNN for bf16 here")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 16, 100])
def test_blocks_equal_the_plain_product(rows: int, biased: bool) -> None:
    x, weight, bias = made(rows, (96, 64), biased=biased)
    actual = BlockedProduct(weight, bias)(x)
    torch.testing.assert_close(actual.float(), in_fp32(x, weight, bias), rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_comes_back_as_it_was(kernels: Kernels, shape: tuple[int, int]) -> None:
    _, weight, _ = made(1, shape, biased=False)
    assert torch.equal(panels(weight, None, kernels, in_int8=False).dense(), weight)
    number_OI, scale_O = rounded_to_int8(weight)
    rounded = panels(weight, None, kernels, in_int8=True).dense()
    assert torch.equal(rounded, (number_OI * scale_O[:, None]).bfloat16())
    assert torch.equal(PlainProduct(weight, None).dense(), weight)
    if BlockedProduct.takes(weight):
        assert torch.equal(BlockedProduct(weight, None).dense(), weight)


def test_panels_are_for_processors_that_do_not_multiply_bf16(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(4, 4, dtype=torch.bfloat16)
    monkeypatch.setattr(products, "multiplies_bf16", lambda _: False)
    assert isinstance(product_of(weight, None, kernels), PanelProduct)
    assert not isinstance(product_of(weight, None, None), PanelProduct)
    assert isinstance(product_of(weight.float(), None, kernels), PlainProduct)
    monkeypatch.setattr(products, "multiplies_bf16", lambda _: True)
    assert not isinstance(product_of(weight, None, kernels), PanelProduct)
    assert isinstance(product_of(weight, None, kernels, in_int8=True), PanelProduct)


@pytest.mark.parametrize("native", [False, True])
def test_a_plain_weight_multiplies_bf16_in_whichever_format_is_fast(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "multiplies_bf16", lambda _: native)
    x, weight, _ = made(7, (40, 24), biased=False)
    actual = multiply(x[None], weight)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual[0].float(), in_fp32(x, weight, None), rtol=2**-6, atol=1e-2)
    torch.testing.assert_close(multiply(x.float(), weight.float()), in_fp32(x, weight, None))
