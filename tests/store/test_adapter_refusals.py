"""Every reason to refuse an adapter, each with a real file, and the field it names."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from expert_store import BaseSpec, InvalidAdapter, copy_adapter, inspect_adapter

from .samples import BASE, adapter_config, adapter_tensors, bf16_bytes, lora_keys, write_adapter

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MODULE = "model.layers.0.self_attn.q_proj"
KEY_A, KEY_B = lora_keys(MODULE)


def refusal(folder: Path, base: BaseSpec = BASE, max_rank: int = 8) -> InvalidAdapter:
    with pytest.raises(InvalidAdapter) as caught:
        inspect_adapter(folder, base, max_rank=max_rank)
    assert caught.value.field
    return caught.value


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_plain_adapter_is_accepted(tmp_path: Path, dtype: type[np.generic]) -> None:
    folder = write_adapter(tmp_path / "a", tensors=adapter_tensors(dtype=dtype))
    info = inspect_adapter(folder, BASE, max_rank=2)
    assert (info.kind, info.rank, info.target_modules) == ("lora", 2, ("q_proj", "v_proj"))


def test_bf16_is_accepted(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / WEIGHTS).write_bytes(bf16_bytes(adapter_tensors()))
    assert inspect_adapter(folder, BASE, max_rank=2).rank == 2


def test_files_that_are_no_part_of_the_adapter_are_not_looked_at(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "README.md").write_text("a model card")
    before = inspect_adapter(write_adapter(tmp_path / "alone"), BASE, max_rank=2)
    (folder / "manifest.json").write_text("{}")
    assert inspect_adapter(folder, BASE, max_rank=2) == before


# Files


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / name).unlink()
    assert refusal(folder).field == name


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_link_is_not_followed(tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert refusal(folder).field == name
    (tmp_path / "copy").mkdir()
    with pytest.raises(InvalidAdapter):
        copy_adapter(folder, tmp_path / "copy")
    assert not list((tmp_path / "copy").iterdir())


def test_a_pipe_in_the_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    assert refusal(folder).field == WEIGHTS


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "x.pt", "x.PTH", "x.pkl", "x.pickle", "x.ckpt"], ids=lambda name: Path(name).suffix
)
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / name).write_bytes(b"")
    assert refusal(folder).field == name


@pytest.mark.parametrize("data", [pickle.dumps({"a": 1}), b"PK\x03\x04" + b"\0" * 60], ids=["pickle", "zip"])
def test_pickles_are_refused_by_content(tmp_path: Path, data: bytes) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / WEIGHTS).write_bytes(data)
    error = refusal(folder)
    assert error.field == WEIGHTS
    assert "pickle" in error.message
    assert "safe_serialization=True" in error.message


def test_copying_takes_the_two_files_only(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "training_args.bin").write_bytes(b"left by a Trainer")
    (tmp_path / "copy").mkdir()
    copy_adapter(folder, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {CONFIG, WEIGHTS}


# Modules, shapes and ranks


def test_a_target_the_base_does_not_have_is_refused(tmp_path: Path) -> None:
    error = refusal(write_adapter(tmp_path / "a", target_modules=["q_proj", "v_proj", "gate_proj"]))
    assert error.field == "target_modules"
    assert "'gate_proj'" in error.message
    assert "q_proj, v_proj" in error.message


def test_weights_for_a_module_the_base_does_not_have_are_refused(tmp_path: Path) -> None:
    tensors = adapter_tensors()
    for old, new in zip(lora_keys(MODULE), lora_keys("model.layers.9.self_attn.q_proj"), strict=True):
        tensors[new] = tensors.pop(old)
    error = refusal(write_adapter(tmp_path / "a", tensors=tensors))
    assert error.field == "target_modules"
    assert "layers.9" in error.message


def test_weights_the_config_does_not_target_are_refused(tmp_path: Path) -> None:
    assert refusal(write_adapter(tmp_path / "a", target_modules=["v_proj"])).field == "target_modules"
    assert refusal(write_adapter(tmp_path / "b", layers_to_transform=[1])).field == "target_modules"


def test_targets_without_weights_are_refused(tmp_path: Path) -> None:
    tensors = adapter_tensors()
    del tensors[KEY_A], tensors[KEY_B]
    error = refusal(write_adapter(tmp_path / "a", tensors=tensors))
    assert error.field == WEIGHTS
    assert MODULE in error.message


def test_no_tensors_at_all_are_refused(tmp_path: Path) -> None:
    assert refusal(write_adapter(tmp_path / "a", tensors={})).field == WEIGHTS
    error = refusal(write_adapter(tmp_path / "b", tensors={}, layers_to_transform=[9]))
    assert "no LoRA weights" in error.message


@pytest.mark.parametrize("missing", [KEY_A, KEY_B], ids=["lora_A", "lora_B"])
def test_half_a_pair_is_refused(tmp_path: Path, missing: str) -> None:
    tensors = adapter_tensors()
    del tensors[missing]
    error = refusal(write_adapter(tmp_path / "a", tensors=tensors))
    assert error.field == WEIGHTS
    assert "pairs" in error.message


@pytest.mark.parametrize(
    "key",
    [
        f"base_model.model.{MODULE}.lora_magnitude_vector.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        f"base_model.model.{MODULE}.lora_A.default.weight",
        f"{MODULE}.lora_A.weight",
        "lm_head.weight",
    ],
)
def test_a_tensor_that_is_no_lora_factor_is_refused(tmp_path: Path, key: str) -> None:
    tensors = adapter_tensors() | {key: np.ones((2, 8), np.float32)}
    error = refusal(write_adapter(tmp_path / "a", tensors=tensors))
    assert error.field == WEIGHTS
    assert "LoRA factor" in error.message


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (KEY_A, (2, 9)),
        (KEY_B, (9, 2)),
        (KEY_B, (8, 3)),
        (KEY_A, (16,)),
        (KEY_A, (2, 8, 1)),
        (KEY_A, (0, 8)),
        (KEY_A, ()),
    ],
    ids=str,
)
def test_a_wrong_shape_is_refused(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    tensors = adapter_tensors() | {key: np.ones(shape, np.float32)}
    error = refusal(write_adapter(tmp_path / "a", tensors=tensors))
    assert error.field == WEIGHTS
    assert key in error.message or MODULE in error.message


def test_a_rank_over_the_cap_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", r=4, tensors=adapter_tensors(rank=4))
    error = refusal(folder, max_rank=3)
    assert error.field == "r"
    assert "rank 4, at most 3" in error.message
    inspect_adapter(folder, BASE, max_rank=4)


def test_a_rank_other_than_declared_is_refused(tmp_path: Path) -> None:
    assert refusal(write_adapter(tmp_path / "a", r=3)).field == "r"
    assert refusal(write_adapter(tmp_path / "b", rank_pattern={"v_proj": 3})).field == "rank_pattern"


# Values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float, dtype: str) -> None:
    folder = write_adapter(tmp_path / "a")
    tensors = adapter_tensors(dtype=np.float16 if dtype == "F16" else np.float32)
    tensors[KEY_B][-1, -1] = value
    if dtype == "BF16":
        (folder / WEIGHTS).write_bytes(bf16_bytes(tensors))
    else:
        save_file(tensors, folder / WEIGHTS)
    error = refusal(folder)
    assert error.field == WEIGHTS
    assert KEY_B in error.message
    assert "NaN" in error.message


def test_the_largest_finite_values_are_accepted(tmp_path: Path) -> None:
    tensors = adapter_tensors(dtype=np.float16)
    tensors[KEY_B][:] = np.finfo(np.float16).max
    assert "finite" in inspect_adapter(write_adapter(tmp_path / "a", tensors=tensors), BASE, max_rank=2).checks


def test_every_piece_of_a_large_tensor_is_looked_at(tmp_path: Path) -> None:
    num_in = 3 * 2**20 + 1
    base = BaseSpec("sha256:" + "2" * 64, {"layer.up": (num_in, 1)})
    key_a, key_b = lora_keys("layer.up")
    tensors = {key_a: np.zeros((1, num_in), np.float16), key_b: np.ones((1, 1), np.float16)}
    tensors[key_a][0, -1] = 1
    config = adapter_config(r=1, target_modules=["up"])
    inspect_adapter(write_adapter(tmp_path / "a", config, tensors), base, max_rank=1)
    tensors[key_a][0, -1] = np.nan
    assert "NaN" in refusal(write_adapter(tmp_path / "a", config, tensors), base).message


@pytest.mark.parametrize("zeroed", ["lora_A", "lora_B"])
def test_an_adapter_without_any_effect_is_refused(tmp_path: Path, zeroed: str) -> None:
    tensors = {key: values * (zeroed not in key) for key, values in adapter_tensors().items()}
    tensors = {key: np.negative(values) for key, values in tensors.items()}  # -0.0 is nothing, too
    error = refusal(write_adapter(tmp_path / "a", tensors=tensors))
    assert error.field == WEIGHTS
    assert "as the base model" in error.message


def test_one_module_with_an_effect_is_enough(tmp_path: Path) -> None:
    tensors = {key: values * (MODULE in key) for key, values in adapter_tensors().items()}
    assert "effect" in inspect_adapter(write_adapter(tmp_path / "a", tensors=tensors), BASE, max_rank=2).checks


def test_an_int8_adapter_is_refused(tmp_path: Path) -> None:
    tensors = adapter_tensors() | {KEY_A: np.ones((2, 8), np.int8)}
    error = refusal(write_adapter(tmp_path / "a", tensors=tensors))
    assert error.field == WEIGHTS
    assert "'I8'" in error.message


def test_messages_do_not_repeat_a_novel(tmp_path: Path) -> None:
    config = adapter_config() | {"x" * 5000: 1}
    error = refusal(write_adapter(tmp_path / "a", config))
    assert len(error.message) < 300
    assert json.dumps(error.message)
