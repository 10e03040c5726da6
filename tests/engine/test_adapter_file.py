"""An adapter's file in memory: the numbers PEFT would use, in the file's own format, whatever becomes of the file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from expert_store import CONFIG_FILE, WEIGHTS_FILE, ExpertStore, InvalidAdapter
from server.engine import adapter_file
from server.engine.adapter_file import read_adapter_file, read_expert
from server.model.base import load_base
from tests.support import tiny

MODULE = "model.layers.1.self_attn.v_proj"
KEY = f"base_model.model.{MODULE}"


def adapter(base_folder: Path, folder: Path, dtype: torch.dtype, **config: object) -> Path:
    tiny.write_adapter(folder, base_folder, kind="lora", **config)
    tensors = load((folder / WEIGHTS_FILE).read_bytes())
    save_file({key: value.to(dtype).contiguous() for key, value in tensors.items()}, folder / WEIGHTS_FILE)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_numbers_are_the_files_own(base_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = adapter(base_folder, tmp_path / "a", dtype, rank=1, rank_pattern={"v_proj": 3})
    expected = load((folder / WEIGHTS_FILE).read_bytes())
    weights = read_adapter_file(folder)
    assert len(weights.memory) == (folder / WEIGHTS_FILE).stat().st_size
    (folder / WEIGHTS_FILE).write_bytes(b"")
    terms = weights.terms()
    assert len(terms) * 2 == len(expected)
    assert terms[MODULE].a.dtype == dtype
    torch.testing.assert_close(terms[MODULE].a, expected[f"{KEY}.lora_A.weight"], rtol=0, atol=0)
    torch.testing.assert_close(terms[MODULE].b.T, expected[f"{KEY}.lora_B.weight"], rtol=0, atol=0)
    assert terms[MODULE].a.shape[0] == 3
    assert terms[MODULE].scaling == pytest.approx(2 / 3)


def test_experts_of_one_shape_share_what_describes_it(base_folder: Path, tmp_path: Path) -> None:
    one, two = (
        read_adapter_file(adapter(base_folder, tmp_path / str(seed), torch.bfloat16, seed=seed)) for seed in (1, 2)
    )
    assert one.layout is two.layout
    assert one.memory[:] != two.memory[:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_scaling_makes_infinite_are_refused(base_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = adapter(base_folder, tmp_path / "a", dtype, rank=4, strength=1e34)
    read_adapter_file(folder)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, "lora_alpha": 1e6}))
    with pytest.raises(InvalidAdapter, match="not finite"):
        read_adapter_file(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_a_is_no_reason_to_refuse_since_only_b_is_scaled(
    base_folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = adapter(base_folder, tmp_path / "a", torch.float32, rank=4)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, "lora_alpha": 400}))
    tensors = load((folder / WEIGHTS_FILE).read_bytes())
    tensors[f"{KEY}.lora_A.weight"].fill_(3e37)
    tensors[f"{KEY}.lora_B.weight"] = tensors[f"{KEY}.lora_B.weight"].to(dtype)
    save_file(tensors, folder / WEIGHTS_FILE)
    terms = read_adapter_file(folder).terms()[MODULE]
    assert terms.scaling == 100
    assert not bool((terms.a * terms.scaling).isfinite().all())


def test_a_cut_file_is_refused(base_folder: Path, tmp_path: Path) -> None:
    folder = adapter(base_folder, tmp_path / "a", torch.bfloat16)
    whole = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(whole[:-10])
    with pytest.raises(InvalidAdapter, match="cut"):
        read_adapter_file(folder)


@pytest.mark.parametrize("change", ["module", "rank of a", "width of a"])
def test_tensors_that_were_changed_to_others_of_the_same_size_are_refused(
    base_folder: Path, tmp_path: Path, change: str
) -> None:
    """Whoever fills slots goes by these shapes, past the end of what is there if they are wrong."""
    folder = adapter(base_folder, tmp_path / "a", torch.bfloat16, rank=4, targets=["v_proj"])
    base = load_base(str(base_folder), dtype="fp32", device="cpu", cache=tmp_path / "cache")
    version = tiny.publish(ExpertStore.open(tmp_path / "store"), base, folder, "a")
    read_expert(version, base.spec.linears)
    file = version.folder / WEIGHTS_FILE
    tensors = load(file.read_bytes())
    a = tensors.pop(f"{KEY}.lora_A.weight")
    if change == "module":
        b = tensors.pop(f"{KEY}.lora_B.weight")
        other = KEY.replace("v_proj", "w_proj")
        tensors |= {f"{other}.lora_A.weight": a, f"{other}.lora_B.weight": b}
    else:
        rank = 2 if change == "rank of a" else 8
        tensors[f"{KEY}.lora_A.weight"] = a.reshape(rank, -1)
    file.chmod(0o644)
    save_file(tensors, file)
    record = version.manifest.files[WEIGHTS_FILE].model_copy(update={"size_bytes": file.stat().st_size})
    files = {**version.manifest.files, WEIGHTS_FILE: record}
    recorded = replace(version, manifest=version.manifest.model_copy(update={"files": files}))
    with pytest.raises(InvalidAdapter, match="do not fit this base"):
        read_expert(recorded, base.spec.linears)


@pytest.mark.parametrize("most", [1, 100, 1 << 20])
@pytest.mark.parametrize("uneven", [False, True])
def test_layers_are_turned_together_or_alone_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, uneven: bool
) -> None:
    """Where one layer's rank, and so what lies between the others' matrices, differs, no two distances are alike."""
    monkeypatch.setattr(adapter_file, "_TURNED_BYTES", most)
    ranks = {2: 5} if uneven else {}
    tensors = {}
    for layer in range(6):
        for name, num_out in (("q_proj", 6), ("v_proj", 4)):
            key, rank = f"base_model.model.layers.{layer}.{name}", ranks.get(layer, 2)
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, 8).bfloat16()
            tensors[f"{key}.lora_B.weight"] = torch.randn(num_out, rank).bfloat16()
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    pattern = {rf"layers\.{layer}\..*": rank for layer, rank in ranks.items()}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]}
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**config, "rank_pattern": pattern}))
    terms = read_adapter_file(tmp_path).terms()
    assert len(terms) == 12
    for path, term in terms.items():
        torch.testing.assert_close(term.b, tensors[f"base_model.model.{path}.lora_B.weight"].T, rtol=0, atol=0)
        torch.testing.assert_close(term.a, tensors[f"base_model.model.{path}.lora_A.weight"], rtol=0, atol=0)
