"""The folder of a run: begun or resumed, and an adapter saved into it as PEFT does. Knows no recipe and no manifest."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel

from expert_store import ADAPTER_FILES, MANIFEST_FILE
from server.model.base import Base, public_name
from training.errors import InvalidRun

CHECKPOINTS = "checkpoints"


def open_folder(out: Path, identity: dict[str, Any], *, resume: bool) -> Path:
    """The folder for checkpoints; `identity` must not change between a run and its resumption.

    Raises InvalidRun rather than overwrite an expert or mix two runs.
    """
    if (out / MANIFEST_FILE).exists():
        raise InvalidRun(f"{out} already holds a trained expert: choose another --out or remove it")
    checkpoints = out / CHECKPOINTS
    record = checkpoints / "run.json"
    text = json.dumps(identity, sort_keys=True, indent=2)
    if record.exists():
        if not resume:
            raise InvalidRun(f"{out} holds an unfinished run: pass --resume to continue it, or choose another --out")
        if record.read_text() != text:
            raise InvalidRun(
                f"{record} differs from this run in base, data or options: repeat the command that began it"
            )
        return checkpoints
    checkpoints.mkdir(parents=True, exist_ok=True)
    record.write_text(text)
    return checkpoints


def remove_checkpoints(checkpoints: Path) -> None:
    """Renamed first, so that no later run takes up what is half removed."""
    removing = checkpoints.with_suffix(".removing")
    shutil.rmtree(removing, ignore_errors=True)
    os.replace(checkpoints, removing)
    shutil.rmtree(removing)


def save_adapter(model: PeftModel, base: Base, folder: Path, *, invocation_tokens: Sequence[int] | None) -> None:
    """PEFT's two files in `folder`, in bf16; with invocation tokens as an activated LoRA."""
    config = cast(LoraConfig, model.peft_config["default"])
    config.base_model_name_or_path = public_name(base.source)
    if invocation_tokens is not None:
        config.alora_invocation_tokens = list(invocation_tokens)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    building = folder / "building"
    model.save_pretrained(str(building), save_embedding_layers=False)
    for name in ADAPTER_FILES:
        os.replace(building / name, folder / name)
    shutil.rmtree(building)
