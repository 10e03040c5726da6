"""Units that make one adapter of several, by PEFT's own merging. Trains nothing and knows no server.

uniform           mean of the products BA, exact ("cat": ranks add up)
task arithmetic   lambda * sum of the products, exact (arXiv 2212.04089)
TIES              trimmed to the largest share, signs elected, agreeing values averaged, then refactored by SVD
                  (arXiv 2306.01708, PEFT's "ties_svd")
WiSE-FT           (1 - alpha) * base + alpha * tuned, that is alpha * BA, exact (arXiv 2109.01903)
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraModel

from expert_store import ADAPTER_FILES
from server.model.base import public_name
from training.evaluate.adapters import ADAPTER, TunedLora
from training.evaluate.units import BaseSource, Spent

_MERGED = "merged"
_MOST_RANK = 64


@dataclass(frozen=True, eq=False)
class Merged:
    """The parts with one weight each; `density` is the share TIES keeps."""

    label: str
    parts: tuple[TunedLora, ...]
    weight: float
    by: Literal["cat", "ties_svd"] = "cat"
    density: float | None = None
    cost: int = 0

    @property
    def name(self) -> str:
        return f"{self.label}-{len(self.parts)}"

    @property
    def parents(self) -> tuple[TunedLora, ...]:
        return self.parts

    def identity(self) -> Mapping[str, Any]:
        return {"weight": self.weight, "by": self.by, "density": self.density}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:  # noqa: ARG002
        loaded = base.load()
        model = load_adapters(loaded.model, [parent / ADAPTER for parent in parents])
        rank = sum(cast(LoraConfig, config).r for config in model.peft_config.values())
        cast(LoraModel, model.base_model).add_weighted_adapter(
            adapters=list(model.peft_config),
            weights=[self.weight] * len(parents),
            adapter_name=_MERGED,
            combination_type=self.by,
            density=self.density,
            svd_rank=min(rank, _MOST_RANK) if self.by == "ties_svd" else None,
            svd_full_matrices=False,
        )
        _save(model, folder, public_name(base.source))


def load_adapters(base: torch.nn.Module, folders: Sequence[Path]) -> PeftModel:
    """The base with every folder's adapter, named part0, part1, ...

    Never a bare number: PEFT takes an adapter's name out of the weights' names, and layers have numbers too.
    """
    model = PeftModel.from_pretrained(base, str(folders[0]), adapter_name="part0")
    for number, folder in enumerate(folders[1:], start=1):
        model.load_adapter(str(folder), adapter_name=f"part{number}")
    return model


def _save(model: PeftModel, folder: Path, base_name: str) -> None:
    """The merged adapter as PEFT's two files, in bf16 like those it is made of."""
    cast(LoraConfig, model.peft_config[_MERGED]).base_model_name_or_path = base_name
    for name, parameter in model.named_parameters():
        if f".{_MERGED}." in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    building = folder / "building"
    model.save_pretrained(str(building), selected_adapters=[_MERGED], save_embedding_layers=False)
    (folder / ADAPTER).mkdir(exist_ok=True)
    for file in ADAPTER_FILES:
        os.replace(building / _MERGED / file, folder / ADAPTER / file)
    shutil.rmtree(building)
