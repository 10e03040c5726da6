"""Experts with random weights, published into a store, as many as are asked for. Measures nothing and serves nothing.

They answer nonsense, but cost what trained ones of the same rank and layers cost.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from expert_store import WEIGHTS_FILE, BaseSpec, ExpertStore, ManifestDraft, inspect_adapter

_STRENGTH = 0.02  # small enough for finite logits, large enough to change them


def publish_synthetic(root: Path, spec: BaseSpec, *, count: int, rank: int, targets: Sequence[str]) -> list[str]:
    """Publishes `count` plain LoRA experts; returns their names."""
    store = ExpertStore.open(root)
    names = [f"synthetic-{number:04}" for number in range(count)]
    for seed, name in enumerate(names):
        with store.stage() as staged:
            _write(staged.folder, spec, seed=seed, rank=rank, targets=targets)
            info = inspect_adapter(staged.folder, spec, max_rank=rank)
            store.publish(staged, ManifestDraft(), info, name=name)
    return names


def _write(folder: Path, spec: BaseSpec, *, seed: int, rank: int, targets: Sequence[str]) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (width_in, width_out) in spec.linears.items():
        if path.rpartition(".")[2] in targets:
            for factor, shape in (("A", (rank, width_in)), ("B", (width_out, rank))):
                values = torch.randn(shape, generator=generator) * _STRENGTH
                tensors[f"base_model.model.{path}.lora_{factor}.weight"] = values.bfloat16()
    save_file(tensors, folder / WEIGHTS_FILE)
    LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM").save_pretrained(
        str(folder)
    )
