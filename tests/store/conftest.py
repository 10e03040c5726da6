"""Adapters made by PEFT itself, once per session, and empty stores."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from expert_store import BaseSpec, ExpertStore

from .disks import HastyDisk

INVOCATION = (5, 6)
TARGETS = ["q_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8},
    "alora": {"r": 4, "lora_alpha": 8, "alora_invocation_tokens": list(INVOCATION)},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True, "layers_to_transform": [1]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 2, r"^model\.layers\.1\.mlp\.down_proj": 6},
        "alpha_pattern": {r"layers\.0\..*": 3, "down_proj": 24},
    },
}


@dataclass(frozen=True)
class PeftAdapters:
    """`build()` makes the same tiny random Llama each time; `folders` holds what PEFT saved for it, by variant.

    `scalings` are PEFT's own, by variant and module path, after loading: saving sorts the patterns, so that where two
    match a module the one that counts may be another than in training.
    """

    build: Callable[[], Any]
    base: BaseSpec
    folders: dict[str, Path]
    scalings: dict[str, dict[str, float]]


@pytest.fixture(scope="session")
def peft_adapters(tmp_path_factory: pytest.TempPathFactory) -> PeftAdapters:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )

    def build() -> Any:
        torch.manual_seed(0)
        return LlamaForCausalLM(config).train(False)

    linears = {
        name: (module.in_features, module.out_features)
        for name, module in build().named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    folders, scalings = {}, {}
    for variant, options in VARIANTS.items():
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, init_lora_weights=False, **options)
        folders[variant] = tmp_path_factory.mktemp(variant)
        get_peft_model(build(), lora).save_pretrained(str(folders[variant]))
        model: Any = PeftModel.from_pretrained(build(), folders[variant])
        scalings[variant] = {
            name: module.scaling["default"]
            for name, module in model.base_model.model.named_modules()
            if hasattr(module, "scaling") and hasattr(module, "lora_A")
        }
    return PeftAdapters(build, BaseSpec("sha256:" + "1" * 64, linears), folders, scalings)


@pytest.fixture
def store(tmp_path: Path) -> ExpertStore:
    return ExpertStore.open(tmp_path / "store", disk=HastyDisk())
