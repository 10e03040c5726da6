"""A small base and adapters for it, written with numpy alone, and the raw bytes of safetensors files good and bad."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from expert_store import (
    GATE_FILES,
    ROUTER_FILE,
    AdapterInfo,
    BaseSpec,
    ExpertStore,
    ExpertVersion,
    Indicators,
    ManifestDraft,
    RoutedExpert,
    RouterDraft,
    RouterVersion,
)

WIDTH = 8
LAYERS = 2
BASE = BaseSpec(
    fingerprint="sha256:" + "0" * 64,
    linears={
        f"model.layers.{layer}.self_attn.{name}": (WIDTH, WIDTH if name == "q_proj" else WIDTH // 2)
        for layer in range(LAYERS)
        for name in ("q_proj", "v_proj")
    },
)
INFO = AdapterInfo(
    kind="lora",
    rank=2,
    target_modules=("q_proj",),
    parameters=64,
    invocation_tokens=None,
    base_fingerprint=BASE.fingerprint,
)
GATED = replace(INFO, gate=replace(INFO, kind="alora", rank=1, parameters=32, invocation_tokens=(5, 6)))
CHOOSY = ManifestDraft(indicators=Indicators())
Tensors = dict[str, NDArray[Any]]


def adapter_config(**changes: Any) -> dict[str, Any]:
    """What PEFT writes for rank 2 on both modules of BASE, with `changes`."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "megatron_core": "megatron.core",
    } | changes


def lora_keys(module: str) -> tuple[str, str]:
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


def adapter_tensors(*, rank: int = 2, dtype: type[np.generic] = np.float32) -> Tensors:
    """Random factors for every linear of BASE."""
    rng = np.random.default_rng(0)
    tensors: Tensors = {}
    for module, (num_in, num_out) in BASE.linears.items():
        key_a, key_b = lora_keys(module)
        tensors[key_a] = rng.normal(size=(rank, num_in)).astype(dtype)
        tensors[key_b] = rng.normal(size=(num_out, rank)).astype(dtype)
    return tensors


def write_adapter(
    folder: Path, config: Mapping[str, Any] | None = None, tensors: Tensors | None = None, **changes: Any
) -> Path:
    """Writes both files into `folder`; `changes` are config keys."""
    folder.mkdir(parents=True, exist_ok=True)
    values = adapter_config(**changes) if config is None else config
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(adapter_tensors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


def safetensors_bytes(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    """A safetensors file with exactly this header, valid or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def bf16_bytes(tensors: Tensors) -> bytes:
    """The same tensors in BF16 (truncated, as numpy has no such type), written by hand."""
    header: dict[str, Any] = {}
    data = b""
    for key, values in tensors.items():
        piece = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[key] = {
            "dtype": "BF16",
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(piece)],
        }
        data += piece
    return safetensors_bytes(header, data)


def publish(
    store: ExpertStore,
    name: str,
    *,
    draft: ManifestDraft = CHOOSY,
    info: AdapterInfo = INFO,
    activate: bool = True,
    weights: bytes = b"weights",
) -> ExpertVersion:
    """Publishes placeholder files: the store keeps bytes and does not judge them."""
    with store.stage() as staged:
        (staged.folder / "adapter_config.json").write_bytes(b"{}")
        (staged.folder / "adapter_model.safetensors").write_bytes(weights)
        for file in GATE_FILES if info.gate is not None else ():
            (staged.folder / file).parent.mkdir(exist_ok=True)
            (staged.folder / file).write_bytes(b"gate " + weights)
        return store.publish(staged, draft, info, name=name, activate=activate)


def publish_router(store: ExpertStore, *experts: ExpertVersion, weights: bytes = b"weights") -> RouterVersion:
    """A router over these experts whose file holds anything."""
    routed = [RoutedExpert(name=e.name, version=e.version, digest=e.digest) for e in experts]
    draft = RouterDraft(
        base_fingerprint="sha256:" + "0" * 64,
        gates="sigmoid",
        experts=tuple(routed) or (RoutedExpert(name="sql", version=1, digest="sha256:" + "0" * 64),),
        num_layers=2,
        width=4,
    )
    with store.stage() as staged:
        (staged.folder / ROUTER_FILE).write_bytes(weights)
        return store.publish_router(staged, draft)
