"""PEFT is the judge: what it saves is accepted, selected and scaled as it does, and it loads a version as it is."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from expert_store import (
    ExpertStore,
    ManifestDraft,
    copy_adapter,
    inspect_adapter,
    parse_config,
    read_config,
    read_scaling,
)
from expert_store.peft_config import HARMLESS_KEYS, SERVED_KEYS, UNSERVED_KEYS

from .conftest import INVOCATION, VARIANTS, PeftAdapters
from .samples import BASE, adapter_config

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_peft_saves_is_accepted(peft_adapters: PeftAdapters, variant: str) -> None:
    info = inspect_adapter(peft_adapters.folders[variant], peft_adapters.base, max_rank=8)

    assert info.kind == ("alora" if variant == "alora" else "lora")
    assert info.invocation_tokens == (INVOCATION if variant == "alora" else None)
    assert info.rank == (6 if variant == "patterns" else 4)
    assert info.target_modules == ("down_proj", "q_proj")
    assert info.base_fingerprint == peft_adapters.base.fingerprint
    assert info.checks == ("files", "config", "header", "modules", "shapes", "ranks", "finite", "effect")


def test_parameters_are_counted(peft_adapters: PeftAdapters) -> None:
    info = inspect_adapter(peft_adapters.folders["lora"], peft_adapters.base, max_rank=8)
    assert info.parameters == 2 * 4 * ((16 + 16) + (24 + 16))


@pytest.mark.parametrize("variant", VARIANTS)
def test_scaling_and_targets_are_those_of_peft(peft_adapters: PeftAdapters, variant: str) -> None:
    config = read_config(peft_adapters.folders[variant])
    scalings = peft_adapters.scalings[variant]
    assert {module: read_scaling(config, module) for module in scalings} == scalings
    assert {module for module in peft_adapters.base.linears if config.targets(module)} == scalings.keys()


@pytest.mark.parametrize(
    "selection",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["model.layers.1.self_attn.v_proj", "q_proj"]},
        {"target_modules": ["proj"]},
        {"target_modules": r".*\.(q_proj|v_proj)$"},
        {"target_modules": r"model\.layers\.0\..*"},
        {"target_modules": "q_proj"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.0\..*"},
        {"target_modules": ["q_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 7]},
        {"target_modules": ["q_proj"], "layers_to_transform": []},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h"]},
    ],
    ids=str,
)
def test_targets_are_selected_as_peft_selects_them(selection: dict[str, Any]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    ours = parse_config(adapter_config(**selection))
    theirs = LoraConfig(task_type="CAUSAL_LM", **selection)
    for module in BASE.linears:
        assert ours.targets(module) == bool(check_target_module_exists(theirs, module)), module


def test_every_key_of_the_installed_peft_is_known() -> None:
    """A new PEFT with new keys should fail here, so that somebody decides what the key means for serving."""
    from peft import LoraConfig

    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields - {"runtime_config"} <= HARMLESS_KEYS | SERVED_KEYS | UNSERVED_KEYS


def test_every_lora_variant_of_peft_but_alora_is_refused() -> None:
    from peft import LoraConfig

    variants = {field.name for field in dataclasses.fields(LoraConfig) if field.metadata.get("is_lora_variant")}
    assert variants - {"alora_invocation_tokens"} <= UNSERVED_KEYS


@pytest.mark.parametrize("dtype_name", ["bfloat16", "float16"])
def test_half_precision_files_are_accepted(peft_adapters: PeftAdapters, tmp_path: Path, dtype_name: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "half"
    shutil.copytree(peft_adapters.folders["lora"], folder)
    weights = load_file(folder / "adapter_model.safetensors")
    dtype = getattr(torch, dtype_name)
    save_file({key: value.to(dtype) for key, value in weights.items()}, folder / "adapter_model.safetensors")
    assert inspect_adapter(folder, peft_adapters.base, max_rank=8).rank == 4


def test_a_freshly_initialised_adapter_is_refused_as_a_no_op(peft_adapters: PeftAdapters, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from expert_store import InvalidAdapter

    get_peft_model(peft_adapters.build(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(
        str(tmp_path)
    )
    with pytest.raises(InvalidAdapter, match="as the base model"):
        inspect_adapter(tmp_path, peft_adapters.base, max_rank=8)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_what_cannot_be_served_is_refused_by_its_key(
    peft_adapters: PeftAdapters, tmp_path: Path, options: dict[str, Any]
) -> None:
    from peft import LoraConfig, get_peft_model

    from expert_store import InvalidAdapter

    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False, **options)
    get_peft_model(peft_adapters.build(), config).save_pretrained(str(tmp_path))
    with pytest.raises(InvalidAdapter) as refusal:
        inspect_adapter(tmp_path, peft_adapters.base, max_rank=8)
    assert refusal.value.field == next(iter(options))


@pytest.mark.parametrize("variant", ["lora", "alora", "patterns"])
def test_peft_loads_a_version_folder_as_it_is(peft_adapters: PeftAdapters, store: ExpertStore, variant: str) -> None:
    import torch
    from peft import PeftModel

    info = inspect_adapter(peft_adapters.folders[variant], peft_adapters.base, max_rank=8)
    with store.stage() as staged:
        copy_adapter(peft_adapters.folders[variant], staged.folder)
        version = store.publish(staged, ManifestDraft(), info, name=variant)
    tokens = torch.tensor([[1, 5, 6, 3, 4]])

    def logits(folder: Path) -> Any:
        with torch.no_grad():
            return PeftModel.from_pretrained(peft_adapters.build(), folder)(input_ids=tokens).logits

    assert torch.equal(logits(version.folder), logits(peft_adapters.folders[variant]))
    with torch.no_grad():
        plain = peft_adapters.build()(input_ids=tokens).logits
    assert not torch.allclose(logits(version.folder), plain)
    assert json.loads((version.folder / "manifest.json").read_text())["kind"] == info.kind
