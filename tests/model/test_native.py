"""The compiled kernels against torch, and life without a compiler. Attention and LoRA have files of their own."""

import subprocess
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from server.model.native import LEVELS, Kernels, applies_to, build, load_kernels
from tests.support.kernels import built

ROWS = [1, 3, 70]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [64, 100])
def test_add_norm_is_the_sum_and_its_rms_norm(kernels: Kernels, rows: int, width: int) -> None:
    total, delta, weight = random(rows, width), random(rows, width) * 3, random(width)
    expected = total + delta
    normed = F.rms_norm(expected.float(), (width,), weight.float(), 1e-5)
    actual = kernels.add_norm(total, delta, weight, 1e-5)
    torch.testing.assert_close(total, expected, rtol=0, atol=0)
    torch.testing.assert_close(actual, normed.bfloat16(), rtol=1e-2, atol=1e-3)


def test_add_norm_without_anything_to_add_leaves_the_sum_alone(kernels: Kernels) -> None:
    total, weight = random(5, 32), random(32)
    before = total.clone()
    normed = kernels.add_norm(total, None, weight, 1e-6)
    torch.testing.assert_close(total, before, rtol=0, atol=0)
    torch.testing.assert_close(normed, F.rms_norm(before.float(), (32,), weight.float(), 1e-6).bfloat16())


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [1, 30, 300])
def test_swiglu_is_silu_times_up(kernels: Kernels, rows: int, size: int) -> None:
    gate_up = random(rows, 2 * 96) * size
    gate, up = gate_up.float().chunk(2, dim=-1)
    torch.testing.assert_close(kernels.swiglu(gate_up), (F.silu(gate) * up).bfloat16(), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("tokens", ROWS)
def test_rotate_and_store_turns_queries_and_keys_and_fills_the_cache(kernels: Kernels, tokens: int) -> None:
    heads, kv_heads, width, capacity = 4, 2, 16, 8
    qkv = random(tokens, heads + 2 * kv_heads, width)
    angle = torch.arange(tokens)[:, None] * torch.linspace(0.1, 1, width // 2)
    cos, sin = (torch.cat((f(angle), f(angle)), dim=1) for f in (torch.cos, torch.sin))
    signed = torch.cat((-sin[:, : width // 2], sin[:, width // 2 :]), dim=1)
    cache = torch.zeros(20, 2 * kv_heads, capacity, width, dtype=torch.bfloat16)
    order = torch.randperm(20 * capacity, generator=torch.Generator().manual_seed(0))[:tokens]
    place = order // capacity * 2 * kv_heads * capacity + order % capacity
    turned = qkv[:, : heads + kv_heads].float()
    turned = turned * cos[:, None] + turned.roll(width // 2, -1) * signed[:, None]
    values = qkv[:, heads + kv_heads :].clone()

    kernels.rotate_and_store(qkv, cos, signed, cache, place, num_rotated=heads + kv_heads)

    torch.testing.assert_close(qkv[:, : heads + kv_heads], turned.bfloat16(), rtol=1e-2, atol=1e-2)
    stored = cache[order // capacity, :, order % capacity]
    torch.testing.assert_close(stored[:, :kv_heads], qkv[:, heads : heads + kv_heads], rtol=0, atol=0)
    torch.testing.assert_close(stored[:, kv_heads:], values, rtol=0, atol=0)


def test_nothing_but_numbers_is_stored(kernels: Kernels) -> None:
    """A NaN left in a block would reach its next owner."""
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0]).bfloat16()
    qkv = torch.zeros(1, 3, 4, dtype=torch.bfloat16)
    qkv[0, 2] = values
    cache = torch.zeros(1, 2, 8, 4, dtype=torch.bfloat16)
    ones, place = torch.ones(1, 4), torch.zeros(1, dtype=torch.int64)
    kernels.rotate_and_store(qkv, ones, torch.zeros(1, 4), cache, place, num_rotated=2)
    torch.testing.assert_close(cache[0, 1, 0], values.nan_to_num(), rtol=0, atol=0)


def test_copied_tokens_are_those_of_every_head_and_no_others(kernels: Kernels) -> None:
    cache = random(6, 4, 8, 16)
    expected = cache.clone()
    for source, target, num_tokens in ((0, 3, 5), (0, 5, 8), (2, 1, 0)):
        expected[target, :, :num_tokens] = expected[source, :, :num_tokens]
    kernels.copy_tokens(cache, torch.tensor([(0, 3, 5), (0, 5, 8), (2, 1, 0)]))
    torch.testing.assert_close(cache, expected, rtol=0, atol=0)


def test_they_are_for_bf16_on_a_processor() -> None:
    assert not applies_to(torch.empty(1))
    assert not applies_to(torch.empty(1, dtype=torch.bfloat16, device="meta"))


@pytest.mark.usefixtures("kernels")
def test_they_are_compiled_once(kernels_folder: Path) -> None:
    library = build(kernels_folder, LEVELS[torch.backends.cpu.get_cpu_capability()])
    made = library.stat().st_mtime_ns
    assert load_kernels(kernels_folder) is not None
    assert library.stat().st_mtime_ns == made


@pytest.mark.usefixtures("kernels")
def test_a_library_that_was_cut_short_is_built_anew(kernels_folder: Path, tmp_path: Path) -> None:
    whole = build(kernels_folder, LEVELS[torch.backends.cpu.get_cpu_capability()])
    library = tmp_path / whole.relative_to(kernels_folder)
    library.parent.mkdir()
    library.write_bytes(b"\x7fELF")
    assert load_kernels(tmp_path) is not None
    assert library.stat().st_size == whole.stat().st_size


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("level", LEVELS.values())
def test_every_level_compiles_and_then_needs_no_compiler(
    level: str, kernels_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = built(kernels_folder, level)
    monkeypatch.setenv("CC", "/bin/false")
    assert build(kernels_folder, level) == library


@pytest.mark.parametrize("compiler", ["/bin/false", "/nowhere/cc"])
def test_a_compiler_that_fails_leaves_the_work_to_torch(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert load_kernels(tmp_path) is None


def test_without_a_compiler_torch_does_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_kernels(tmp_path) is None


@pytest.mark.usefixtures("kernels")
def test_the_source_compiles_without_a_warning(tmp_path: Path) -> None:
    source = Path(load_kernels.__code__.co_filename).with_name("kernels.c")
    command = ["gcc", "-O3", "-march=x86-64-v3", "-fopenmp", "-Wall", "-Wextra", "-Werror", "-c", str(source)]
    built = subprocess.run([*command, "-o", str(tmp_path / "out.o")], capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
