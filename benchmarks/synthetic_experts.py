"""Experts with random weights, as files or published into a store, as many as are asked for. Measures nothing.

They answer nonsense, but cost what trained ones of the same rank and layers cost.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from expert_store import (
    GATE_FOLDER,
    PROFILE_FILE,
    WEIGHTS_FILE,
    AdapterInfo,
    BaseSpec,
    ExpertStore,
    ManifestDraft,
    Profile,
    inspect_adapter,
)
from expert_store.disk import LocalDisk

_STRENGTH = 0.02  # small enough for finite logits, large enough to change them


@dataclass(frozen=True)
class Shape:
    """What all experts of one kind have in common; `invocation_tokens` make them activated, `gate` gives them one."""

    rank: int
    targets: tuple[str, ...]
    invocation_tokens: tuple[int, ...] | None = None
    gate: "Shape | None" = None


def all_linears(spec: BaseSpec) -> tuple[str, ...]:
    """The names of the base's linear layers, each once."""
    return tuple(sorted({path.rpartition(".")[2] for path in spec.linears}))


def publish_synthetic(
    root: Path,
    spec: BaseSpec,
    shape: Shape,
    drafts: Mapping[str, ManifestDraft],
    *,
    profiles: Mapping[str, Profile] | None = None,
    on_published: Callable[[], None] = lambda: None,
) -> None:
    """Publishes one expert for each draft, under its key as name, with weights of its own; the last heads the chain.

    For stores that are thrown away: nothing is synced to the disk, and a crash may lose it.
    """
    store = ExpertStore.open(root, disk=_Unsynced())
    info: AdapterInfo | None = None
    for seed, (name, draft) in enumerate(drafts.items()):
        with store.stage() as staged:
            write_synthetic(staged.folder, spec, shape, seed=seed)
            if shape.gate is not None:
                (staged.folder / GATE_FOLDER).mkdir()
                write_synthetic(staged.folder / GATE_FOLDER, spec, shape.gate, seed=seed)
            if profiles is not None:
                (staged.folder / PROFILE_FILE).write_bytes(profiles[name].to_bytes())
            info = info or inspect_adapter(staged.folder, spec, max_rank=shape.rank)  # the same for all of one shape
            store.publish(staged, draft, info, name=name)
        on_published()


def write_synthetic(folder: Path, spec: BaseSpec, shape: Shape, *, seed: int) -> None:
    """PEFT's two files. Equal seeds give equal weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (width_in, width_out) in spec.linears.items():
        if path.rpartition(".")[2] in shape.targets:
            for factor, size in (("A", (shape.rank, width_in)), ("B", (width_out, shape.rank))):
                values = torch.randn(size, generator=generator) * _STRENGTH
                tensors[f"base_model.model.{path}.lora_{factor}.weight"] = values.bfloat16()
    save_file(tensors, folder / WEIGHTS_FILE)
    invocation = shape.invocation_tokens
    LoraConfig(
        r=shape.rank,
        lora_alpha=2 * shape.rank,
        target_modules=list(shape.targets),
        task_type="CAUSAL_LM",
        alora_invocation_tokens=None if invocation is None else list(invocation),
    ).save_pretrained(str(folder))


class _Unsynced(LocalDisk):
    """Half of the time of a publication is waiting for the disk."""

    def sync_file(self, path: Path) -> None: ...

    def sync_folder(self, path: Path) -> None: ...
