"""Batched LoRA against the token-by-token loop, over popularities, ranks and number formats."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.model import lora_plan
from server.model.adapter_weights import Terms
from server.model.lora import Arena, add_reference, layer_of
from server.model.lora_plan import Blend, Slots, plan_lora
from server.model.native import Kernels

WIDTH_IN, WIDTHS_OUT, NUM_SLOTS, SLOT_RANK = 24, (40, 16, 8), 48, 8
PATHS = ("model.layers.1.q", "model.layers.1.k", "model.layers.1.v")
CPU = torch.device("cpu")
# Ranks 4 to 64; some neighbours, some far apart.
EXPERTS: list[Slots] = [range(1), range(1, 3), range(3, 4), range(4, 5), range(8, 16), range(40, 41), range(47, 48)]
RANKS = [4, 16, 8, 5, 64, 8, 7]
POPULARITIES: dict[str, list[int | None]] = {
    "distinct": [0, 2, 3, 5, 6],
    "distinct_side_by_side": [0, 2, 3],
    "distinct_of_unlike_ranks": [0, 1, 2, 3, 4, 5, 6],
    "uniform": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
    "zipf": [0] * 8 + [1] * 4 + [2] * 2 + [3, 4],
    "identical": [4] * 9,
    "identical_prefill": [1] * 40,
    "long_prefills": [*[0] * 80, *[1] * 70, 2],
    "skewed": [None] * 20 + [2],
    "skewed_to_one_expert": [0] * 30 + [1, 2, 3, 4],
    "prefills_and_decodes": [None, *[0] * 20, 1, 2, *[3] * 17, *[4] * 5, *[5] * 6],
    "probes": [expert for expert in (0, 1, 2, 3) for _ in range(5)],
    "scattered": [0, 2, 0, 2, None, 0],
    "far_apart": [None, 0, 0, 6],
    "one": [2],
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def filled_arena(dtype: torch.dtype = torch.float32, kernels: Kernels | None = None) -> Arena:
    arena = Arena(
        PATHS,
        features=(WIDTH_IN, WIDTHS_OUT),
        num_slots=NUM_SLOTS,
        slot_rank=SLOT_RANK,
        dtype=dtype,
        device=CPU,
        kernels=kernels,
    )
    generator = torch.Generator().manual_seed(0)
    for slots, rank in zip(EXPERTS, RANKS, strict=True):
        terms = {
            path: Terms(torch.randn(rank, WIDTH_IN, generator=generator), torch.randn(rank, width, generator=generator))
            for path, width in zip(PATHS, WIDTHS_OUT, strict=True)
        }
        if slots is EXPERTS[3]:
            del terms[PATHS[1]]  # this one does not target every linear
        arena.write(slots, terms)
    return arena


def check(
    slots_T: list[Slots | Blend | None],
    dtype: torch.dtype,
    kernels: Kernels | None = None,
    *,
    dense: int | None = None,
) -> None:
    arena = filled_arena(dtype, kernels)
    x_TI = torch.randn(len(slots_T), WIDTH_IN, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = torch.ones(len(slots_T), sum(WIDTHS_OUT), dtype=dtype)
    actual = expected.clone()
    add_reference(arena, expected, x_TI, slots_T)
    arena.add(actual, x_TI, plan_lora(slots_T, device=CPU, native=kernels is not None, dense_slots=dense))
    scale = float(expected.float().abs().max())
    torch.testing.assert_close(actual.float(), expected.float(), atol=TOLERANCE[dtype] * scale, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_batches_equal_the_loop(popularity: str, dtype: torch.dtype) -> None:
    check([None if i is None else EXPERTS[i] for i in POPULARITIES[popularity]], dtype)


@pytest.mark.parametrize("most", [NUM_SLOTS, 4])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_dense_products_equal_the_loop(
    popularity: str, dtype: torch.dtype, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`most`: over all slots as they lie, and over a copy of those in use."""
    monkeypatch.setattr(lora_plan, "_ALL_SLOTS", most)
    monkeypatch.setattr(lora_plan, "_FEW_IN_USE", NUM_SLOTS)
    check([None if i is None else EXPERTS[i] for i in POPULARITIES[popularity]], dtype, dense=NUM_SLOTS)


@pytest.mark.parametrize("few", [NUM_SLOTS, 1])
def test_an_expert_that_overflows_leaves_the_tokens_of_others_alone(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = filled_arena()
    monkeypatch.setattr(lora_plan, "_FEW_IN_USE", few)
    arena.a[EXPERTS[2].start] = 1e38
    x_TI, y_TO = torch.full((2, WIDTH_IN), 1e3), torch.zeros(2, sum(WIDTHS_OUT))
    arena.add(y_TO, x_TI, plan_lora([EXPERTS[0], EXPERTS[2]], device=CPU, dense_slots=NUM_SLOTS))
    assert y_TO[0].isfinite().all()
    assert not y_TO[1].isfinite().any()


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_kernels_equal_the_loop(popularity: str, kernels: Kernels) -> None:
    check([None if i is None else EXPERTS[i] for i in POPULARITIES[popularity]], torch.bfloat16, kernels)


# Weights in layers 0, 1 and 2; the arena is in layer 1.
TWO = Blend((EXPERTS[0], EXPERTS[2]), torch.tensor([[9.0, 9.0], [0.75, 0.25], [9.0, 9.0]]))
MANY = Blend(tuple(EXPERTS), torch.tensor([[9.0] * 7, [0.1, 0.2, 0.3, 0.0, 0.15, 0.05, 0.2], [9.0] * 7]))
BLENDS: dict[str, list[Slots | Blend | None]] = {
    "alone": [TWO],
    "prefill": [MANY] * 90,
    "decodes": [TWO, MANY],
    "with_others": [None, EXPERTS[0], *[TWO] * 3, EXPERTS[2], *[MANY] * 20, EXPERTS[4], EXPERTS[4], TWO],
    "of_one": [Blend((EXPERTS[1],), torch.tensor([[0.0], [1.0], [0.0]])), None, EXPERTS[1]],
}


@pytest.mark.parametrize("dense", [None, NUM_SLOTS])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", BLENDS)
def test_blends_equal_the_loop(name: str, dtype: torch.dtype, dense: int | None) -> None:
    check(BLENDS[name], dtype, dense=dense)


@pytest.mark.parametrize("name", BLENDS)
def test_blends_equal_the_loop_in_kernels(name: str, kernels: Kernels) -> None:
    check(BLENDS[name], torch.bfloat16, kernels)


def test_a_blend_equals_the_formula() -> None:
    """y = sum of w_e x (B_e A_e)^T with the weights of the arena's own layer."""
    arena = filled_arena()
    x_TI = torch.randn(2, WIDTH_IN)
    y_TO = torch.zeros(2, sum(WIDTHS_OUT))
    arena.add(y_TO, x_TI, plan_lora([TWO, TWO], device=CPU))
    of = [x_TI @ (arena.b[0][slots.start].T @ arena.a[slots.start, 0]).T for slots in TWO.slots]
    torch.testing.assert_close(y_TO[:, :40], 0.75 * of[0] + 0.25 * of[1])


def test_a_single_expert_of_weight_one_is_that_expert_bit_for_bit(kernels: Kernels) -> None:
    arena = filled_arena(torch.bfloat16, kernels)
    x_TI = torch.randn(3, WIDTH_IN).bfloat16()
    alone, blended = (torch.zeros(3, sum(WIDTHS_OUT), dtype=torch.bfloat16) for _ in range(2))
    arena.add(alone, x_TI, plan_lora([EXPERTS[1]] * 3, device=CPU, native=True))
    one = Blend((EXPERTS[1],), torch.ones(3, 1))
    arena.add(blended, x_TI, plan_lora([one] * 3, device=CPU, native=True))
    assert torch.equal(alone, blended)


def test_the_layer_is_read_from_the_path() -> None:
    assert [layer_of(path) for path in ("model.layers.12.mlp.up_proj", "transformer.h.0.attn.c_attn")] == [12, 0]
    assert layer_of("model.embed_tokens") is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([None, *EXPERTS, TWO, MANY]), min_size=1, max_size=40))
def test_any_order_of_tokens_equals_the_loop_in_kernels(kernels: Kernels, slots_T: list[Slots | Blend | None]) -> None:
    check(slots_T, torch.bfloat16, kernels)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([None, *EXPERTS, TWO, MANY]), min_size=1, max_size=40))
def test_any_order_of_tokens_equals_the_loop(slots_T: list[Slots | Blend | None]) -> None:
    check(slots_T, torch.float32)
    check(slots_T, torch.float32, dense=NUM_SLOTS)


def test_the_loop_equals_the_formula() -> None:
    """y = x (B A)^T, written out for one expert without slots."""
    arena = filled_arena()
    x_TI = torch.randn(3, WIDTH_IN)
    y_TO = torch.zeros(3, sum(WIDTHS_OUT))
    add_reference(arena, y_TO, x_TI, [EXPERTS[1]] * 3)
    a, b = arena.a[1:3, 0].flatten(0, 1), arena.b[0][1:3].flatten(0, 1)
    torch.testing.assert_close(y_TO[:, :40], x_TI @ (b.T @ a).T)


def test_base_tokens_alone_need_no_plan() -> None:
    assert plan_lora([None, None], device=CPU) is None


def test_slots_side_by_side_are_neither_copied_nor_rearranged() -> None:
    plan = plan_lora([EXPERTS[0], EXPERTS[2], EXPERTS[3]], device=CPU)
    assert plan is not None
    (batch,) = plan.batches
    assert batch.slots == slice(0, 5)
    neighbours = plan_lora([range(3, 4), range(4, 5)], device=CPU)
    assert neighbours is not None
    assert neighbours.batches[0].input_token is None


def test_slots_far_apart_are_picked() -> None:
    plan = plan_lora([EXPERTS[0], EXPERTS[6]], device=CPU)
    assert plan is not None
    (batch,) = plan.batches
    assert isinstance(batch.slots, torch.Tensor)
    assert batch.slots.tolist() == [0, 47]


def test_an_erased_expert_adds_nothing() -> None:
    arena = filled_arena()
    arena.erase(EXPERTS[1])
    y_TO = torch.zeros(2, sum(WIDTHS_OUT))
    arena.add(y_TO, torch.ones(2, WIDTH_IN), plan_lora([EXPERTS[1], EXPERTS[2]], device=CPU))
    assert float(y_TO[0].abs().max()) == 0
    assert float(y_TO[1].abs().max()) > 0


def test_an_overflowing_expert_does_not_touch_its_neighbours_in_kernels(kernels: Kernels) -> None:
    arena = filled_arena(torch.bfloat16, kernels)
    arena.a[EXPERTS[2].start] = 3e38
    slots_T: list[Slots | None] = [None, EXPERTS[0], EXPERTS[2], EXPERTS[5], EXPERTS[1]]
    y_TO = torch.zeros(len(slots_T), sum(WIDTHS_OUT), dtype=torch.bfloat16)
    x_TI = torch.ones(len(slots_T), WIDTH_IN, dtype=torch.bfloat16)
    arena.add(y_TO, x_TI, plan_lora(slots_T, device=CPU, native=True))
    assert [bool(row.isfinite().all()) for row in y_TO] == [True, True, False, True, True]


@pytest.mark.parametrize("length", [1, 2, 20])
def test_an_expert_whose_terms_overflow_does_not_touch_its_neighbours(length: int) -> None:
    arena = filled_arena()
    arena.a[EXPERTS[2].start] = 3e38
    slots_T: list[Slots | None] = [None, *[EXPERTS[0]] * length, *[EXPERTS[2]] * length, *[EXPERTS[5]] * length]
    y_TO = torch.zeros(len(slots_T), sum(WIDTHS_OUT))
    arena.add(y_TO, torch.ones(len(slots_T), WIDTH_IN), plan_lora(slots_T, device=CPU))
    finite = [bool(row.isfinite().all()) for row in y_TO]
    assert finite == [True] * (1 + length) + [False] * length + [True] * length
