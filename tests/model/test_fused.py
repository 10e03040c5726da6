"""The fused decoder against transformers' own modules, with experts in the batch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from server.model import products
from server.model.adapter_weights import Terms
from server.model.attention import plan_attention
from server.model.base import Base, load_base
from server.model.fused import FusedDecoder, fusible
from server.model.generic import GenericDecoder
from server.model.logits import Logits, Wanted
from server.model.lora import arena_maker
from server.model.lora_plan import Blend, Slots, plan_lora
from server.model.native import Kernels
from server.model.paged_kv import KVGeometry, PagedKV, SegmentSpan
from server.model.states import StateSums
from tests.support import tiny
from tests.support.weights import in_one_piece

CPU = torch.device("cpu")
FUSIBLE = ("llama", "mistral", "qwen2", "qwen3")
NUM_SLOTS, SLOT_RANK = 4, 4
EXPERTS: list[tuple[Slots, int]] = [(range(1), 3), (range(1, 3), 8)]
# A prefill of the base, one of an expert, and decodes of both experts, their keys in scattered blocks.
SPANS = [
    SegmentSpan(0, 20, 0, [3, 9]),
    SegmentSpan(20, 18, 0, [1, 2]),
    SegmentSpan(38, 1, 5, [4]),
    SegmentSpan(39, 1, 30, [7, 6]),
]
SLOTS_T: list[Slots | None] = [None] * 20 + [EXPERTS[0][0]] * 19 + [EXPERTS[1][0]]


WANTED = Wanted(
    all_W=torch.tensor([19, 37, 38, 39]),
    choosing_C=torch.tensor([39, 5, 19]),
    between_C2=torch.tensor([[7, 399], [0, 20], [20, 21]]),
)


def logits(base: Base, *, fused: bool, kernels: Kernels | None = None) -> torch.Tensor:
    return run(base, fused=fused, kernels=kernels).all_WV.float()


def run(
    base: Base,
    *,
    fused: bool,
    kernels: Kernels | None = None,
    wanted: Wanted = WANTED,
    slots_T: Sequence[Slots | Blend | None] = SLOTS_T,
    copies: Sequence[tuple[int, int, int]] = (),
    states: StateSums | None = None,
    in_int8: bool = False,
) -> Logits:
    like = next(base.model.parameters())
    new_arena = arena_maker(base.spec.linears, num_slots=NUM_SLOTS, slot_rank=SLOT_RANK, like=like, kernels=kernels)
    decoder = (
        FusedDecoder(base.model, new_arena, kernels, in_int8=in_int8)
        if fused
        else GenericDecoder(base.model, list(base.spec.linears), new_arena)
    )
    generator = torch.Generator().manual_seed(0)
    for slots, rank in EXPERTS:
        terms = {
            path: Terms(torch.randn(rank, i, generator=generator) / 8, torch.randn(rank, o, generator=generator) / 8)
            for path, (i, o) in base.spec.linears.items()
        }
        decoder.arenas.write(slots, in_one_piece(terms))
    config = base.model.config
    geometry = KVGeometry(config.num_hidden_layers, config.num_key_value_heads, 16)
    kv = PagedKV(geometry=geometry, num_blocks=10, block_tokens=16, dtype=base.dtype, device=CPU)
    for layer in kv.layers:
        layer.normal_(generator=generator)
    num_tokens = len(SLOTS_T)
    positions = [span.position + i for span in SPANS for i in range(span.num_queries)]
    with torch.inference_mode():
        return decoder.forward(
            torch.randint(0, 400, (num_tokens,), generator=generator),
            torch.tensor(positions),
            plan_attention(SPANS, kv, kernels, copies=copies),
            plan_lora(slots_T, device=CPU, native=kernels is not None),
            wanted,
            states,
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("bf16", 5e-2)])
@pytest.mark.parametrize("family", FUSIBLE)
def test_fused_equals_transformers(family: str, dtype: str, tolerance: float, tmp_path: Path) -> None:
    folder = tiny.write_base(tmp_path / "base", family)

    def load() -> Base:
        return load_base(str(folder), dtype=dtype, device="cpu", cache=tmp_path)  # type: ignore[arg-type]

    assert fusible(load().model.config)
    expected, actual = logits(load(), fused=False), logits(load(), fused=True)
    assert expected.shape == (4, 400)
    assert float((actual - expected).square().mean().sqrt() / expected.std()) < tolerance


@pytest.mark.parametrize("panels", [False, True])
@pytest.mark.parametrize("family", FUSIBLE)
def test_kernels_equal_transformers(
    family: str, panels: bool, kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`panels`: also the products are theirs, as on processors that do not multiply bf16."""
    monkeypatch.setattr(products, "multiplies_bf16", lambda _: not panels)
    folder = tiny.write_base(tmp_path / "base", family)
    expected = logits(load_base(str(folder), dtype="fp32", device="cpu", cache=tmp_path), fused=False)
    bases = [load_base(str(folder), dtype="bf16", device="cpu", cache=tmp_path) for _ in range(2)]
    in_torch, in_kernels = logits(bases[0], fused=True), logits(bases[1], fused=True, kernels=kernels)

    def error(actual: torch.Tensor) -> float:
        return float((actual - expected).square().mean().sqrt() / expected.std())

    assert error(in_kernels) < 5e-2
    assert error(in_kernels) < 1.2 * error(in_torch)  # fewer roundings, so hardly ever worse


@pytest.mark.parametrize("multiplies_bf16", [False, True])  # int8 is for the kernels in any case
@pytest.mark.parametrize("family", FUSIBLE)
def test_int8_equals_transformers_with_the_same_weights(
    family: str, multiplies_bf16: bool, kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "multiplies_bf16", lambda _: multiplies_bf16)
    folder = str(tiny.write_base(tmp_path / "base", family))
    rounded = load_base(folder, dtype="fp32", device="cpu", cache=tmp_path)
    tiny.round_linears(rounded.model)
    expected = logits(rounded, fused=False)
    base = load_base(folder, dtype="int8", device="cpu", cache=tmp_path, kernels=kernels)
    actual = run(base, fused=True, kernels=kernels, in_int8=base.in_int8).all_WV.float()
    assert float((actual - expected).square().mean().sqrt() / expected.std()) < 5e-2


@pytest.mark.parametrize("in_int8", [False, True])
@pytest.mark.parametrize("copies", [[], [(3, 0, 9), (7, 8, 16)]])
@pytest.mark.parametrize("experts", ["none", "one each", "blended"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])  # Qwen3 norms heads, so its layers go one by one
def test_all_layers_in_one_call_are_the_loop_bit_for_bit(
    family: str,
    experts: str,
    copies: list[tuple[int, int, int]],
    in_int8: bool,
    kernels: Kernels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "multiplies_bf16", lambda _: in_int8)
    calls: list[int] = []
    run_layers = Kernels.run_layers
    monkeypatch.setattr(Kernels, "run_layers", lambda self, *given: (calls.append(1), run_layers(self, *given)))
    folder = tiny.write_base(tmp_path / "base", family)
    layers = load_base(str(folder), dtype="bf16", device="cpu", cache=tmp_path).model.config.num_hidden_layers
    blend = Blend((EXPERTS[0][0], EXPERTS[1][0]), torch.rand(layers, 2, generator=torch.Generator().manual_seed(1)))
    slots_T: list[Slots | Blend | None] = {
        "none": [None] * len(SLOTS_T),
        "one each": list(SLOTS_T),
        "blended": [blend, *SLOTS_T[1:-1], blend],
    }[experts]

    def logits_of(states: StateSums | None) -> Logits:
        fresh = load_base(str(folder), dtype="bf16", device="cpu", cache=tmp_path)
        return run(fresh, fused=True, kernels=kernels, slots_T=slots_T, copies=copies, states=states, in_int8=in_int8)

    at_once, one_by_one = logits_of(None), logits_of(StateSums([(0, 1)]))  # states are looked at between layers
    assert len(calls) == 1
    assert torch.equal(at_once.all_WV, one_by_one.all_WV)
    assert torch.equal(at_once.between_C2, one_by_one.between_C2)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FUSIBLE)
def test_two_logits_are_those_of_the_whole_row(family: str, dtype: str, fused: bool, tmp_path: Path) -> None:
    folder = tiny.write_base(tmp_path / "base", family)

    def load() -> Base:
        return load_base(str(folder), dtype=dtype, device="cpu", cache=tmp_path)  # type: ignore[arg-type]

    nothing = torch.empty(0, dtype=torch.long)
    whole = run(load(), fused=fused, wanted=Wanted(WANTED.choosing_C, nothing, nothing.view(0, 2)))
    two = run(load(), fused=fused, wanted=replace(WANTED, all_W=nothing))
    rounding = {"fp32": 1e-5, "bf16": 2.0**-8}[dtype]
    assert whole.between_C2.shape == (0, 2)
    assert len(two.all_WV) == 0
    assert_close(two.between_C2, whole.all_WV.gather(1, WANTED.between_C2).float(), rtol=rounding, atol=rounding)
    assert_close(run(load(), fused=fused).between_C2, two.between_C2, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("family", sorted({*tiny.FAMILIES} - {*FUSIBLE}))
def test_other_families_are_left_to_transformers(family: str, tmp_path: Path) -> None:
    base = load_base(str(tiny.write_base(tmp_path, family)), dtype="fp32", device="cpu", cache=tmp_path)
    assert not fusible(base.model.config)


def test_an_activation_it_does_not_compute_is_left_to_transformers(tmp_path: Path) -> None:
    base = load_base(str(tiny.write_base(tmp_path)), dtype="fp32", device="cpu", cache=tmp_path)
    base.model.config.hidden_act = "gelu"
    assert not fusible(base.model.config)
