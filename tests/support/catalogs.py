"""Catalog entries without files, for tests that never load an expert."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from expert_store import GATE_FILES, ExpertVersion, FileRecord, Gate, Indicators, Kind, Manifest, Profile


def make_version(
    name: str,
    *,
    version: int = 1,
    kind: Kind = "alora",
    threshold: float = 0.5,
    indicators: bool = True,
    rank: int = 4,
    weight_bytes: int = 1,
    profile: Profile | None = None,
    gated: bool = False,
) -> ExpertVersion:
    """A valid version whose folder does not exist."""
    file = FileRecord(sha256="0" * 64, size_bytes=weight_bytes)
    manifest = Manifest(
        name=name,
        version=version,
        kind=kind,
        rank=rank,
        target_modules=("model.layers.0.self_attn.q_proj",),
        parameters=1,
        invocation_tokens=(1, 2) if kind == "alora" else None,
        base_fingerprint="sha256:" + "0" * 64,
        description="",
        samples=(),
        indicators=Indicators() if indicators else None,
        threshold=threshold,
        gate=Gate(rank=2, target_modules=("q_proj",), parameters=1, invocation_tokens=(1, 2)) if gated else None,
        training=None,
        quality={},
        files=dict.fromkeys(("adapter_config.json", "adapter_model.safetensors", *(GATE_FILES if gated else ())), file),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    digest = "sha256:" + hashlib.sha256(f"{name}@{version}".encode()).hexdigest()
    return ExpertVersion(manifest, digest, Path("no-such-folder") / name, profile)
