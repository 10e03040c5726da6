"""The one-product LoRA against the token-by-token loop, over popularities, ranks and number formats."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.model.lora import Rows, add_lora, add_lora_reference, plan_rows

WIDTH_IN, WIDTH_OUT, NUM_ROWS = 24, 40, 192
EXPERTS = [range(4), range(8, 24), range(24, 32), range(64, 128), range(184, 192)]
POPULARITIES: dict[str, list[int | None]] = {
    "distinct": [0, 1, 2, 3, 4],
    "uniform": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
    "zipf": [0] * 8 + [1] * 4 + [2] * 2 + [3, 4],
    "identical": [3] * 9,
    "skewed": [None] * 20 + [1],
    "far_apart": [None, 0, 0, 4],
    "one": [2],
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}


def arenas(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(NUM_ROWS, WIDTH_IN, generator=generator).to(dtype),
        torch.randn(NUM_ROWS, WIDTH_OUT, generator=generator).to(dtype),
    )


def check(rows_T: list[Rows | None], dtype: torch.dtype) -> None:
    a, b = arenas(dtype)
    x_TI = torch.randn(len(rows_T), WIDTH_IN, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = torch.ones(len(rows_T), WIDTH_OUT, dtype=dtype)
    actual = expected.clone()
    add_lora_reference(expected, x_TI, a, b, rows_T)
    plan = plan_rows(rows_T, device=torch.device("cpu"))
    if plan is not None:
        add_lora(actual[plan.first_token :], x_TI[plan.first_token :], a, b, plan)
    scale = float(expected.float().abs().max())
    torch.testing.assert_close(actual.float(), expected.float(), atol=TOLERANCE[dtype] * scale, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_one_product_equals_the_loop(popularity: str, dtype: torch.dtype) -> None:
    check([None if i is None else EXPERTS[i] for i in POPULARITIES[popularity]], dtype)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([None, *EXPERTS]), min_size=1, max_size=30))
def test_any_order_of_tokens_equals_the_loop(rows_T: list[Rows | None]) -> None:
    check(rows_T, torch.float32)


def test_base_tokens_alone_need_no_plan() -> None:
    assert plan_rows([None, None], device=torch.device("cpu")) is None


def test_a_wide_gap_selects_rows_and_a_narrow_one_takes_a_view() -> None:
    device = torch.device("cpu")
    near = plan_rows([EXPERTS[1], EXPERTS[2]], device=device)
    far = plan_rows([EXPERTS[0], EXPERTS[4]], device=device)
    assert near is not None
    assert near.rows == slice(8, 32)
    assert far is not None
    assert isinstance(far.rows, torch.Tensor)
    assert far.rows.tolist() == [*EXPERTS[0], *EXPERTS[4]]


def test_an_expert_whose_terms_overflow_does_not_touch_its_neighbours() -> None:
    a, b = arenas(torch.float32)
    a[EXPERTS[1].start : EXPERTS[1].stop] = 3e38
    x_TI = torch.ones(3, WIDTH_IN)
    rows_T: list[Rows | None] = [None, EXPERTS[1], EXPERTS[2]]
    plan = plan_rows(rows_T, device=torch.device("cpu"))
    assert plan is not None
    y_TO = torch.zeros(3, WIDTH_OUT)
    add_lora(y_TO[plan.first_token :], x_TI[plan.first_token :], a, b, plan)
    assert [bool(row.isfinite().all()) for row in y_TO] == [True, False, True]
