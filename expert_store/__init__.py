"""Versioned LoRA experts on disk: what PEFT saved, what is known of it, and which version each name means.

Knows no HTTP, no engine and no torch.
"""

from expert_store.adapter import (
    AdapterInfo,
    BaseSpec,
    complete_manifest,
    copy_adapter,
    inspect_adapter,
    read_scaling,
)
from expert_store.breath import breathe, breathe_by
from expert_store.catalog import LIVE, Catalog, Expert, ExpertVersion
from expert_store.centroid import (
    BASE_ALIAS,
    CENTROID_FILE,
    Centroid,
    Origin,
    adapter_digest,
    digest_adapter,
    read_centroid,
)
from expert_store.contents import ADAPTER_FILES, GATE_FILES, GATE_FOLDER
from expert_store.errors import (
    CorruptStore,
    GenerationConflict,
    InvalidAdapter,
    InvalidChain,
    InvalidFallback,
    InvalidManifest,
    InvalidName,
    InvalidRouter,
    StoreBusy,
    StoreError,
    UnknownAlias,
    UnknownExpert,
    UnknownVersion,
    VersionInUse,
)
from expert_store.integrity import Problem, verify_store
from expert_store.layout import MANIFEST_FILE
from expert_store.manifest import (
    FileRecord,
    Gate,
    Indicators,
    Kind,
    Manifest,
    ManifestDraft,
    Training,
    check_alias,
    check_name,
    parse_draft,
    parse_manifest,
)
from expert_store.peft_config import CONFIG_FILE, AdapterConfig, parse_config, read_config
from expert_store.profile import PROFILE_FILE, Profile, read_profile
from expert_store.store import ExpertStore, Staged, file_record
from expert_store.trained_router import (
    ROUTER_FILE,
    Gates,
    RoutedExpert,
    RouterDraft,
    RouterManifest,
    RouterVersion,
    parse_router_draft,
)
from expert_store.vector_file import Vector
from expert_store.weights import WEIGHTS_FILE, read_header

__all__ = [
    "ADAPTER_FILES",
    "BASE_ALIAS",
    "CENTROID_FILE",
    "CONFIG_FILE",
    "GATE_FILES",
    "GATE_FOLDER",
    "LIVE",
    "MANIFEST_FILE",
    "PROFILE_FILE",
    "ROUTER_FILE",
    "WEIGHTS_FILE",
    "AdapterConfig",
    "AdapterInfo",
    "BaseSpec",
    "Catalog",
    "Centroid",
    "CorruptStore",
    "Expert",
    "ExpertStore",
    "ExpertVersion",
    "FileRecord",
    "Gate",
    "Gates",
    "GenerationConflict",
    "Indicators",
    "InvalidAdapter",
    "InvalidChain",
    "InvalidFallback",
    "InvalidManifest",
    "InvalidName",
    "InvalidRouter",
    "Kind",
    "Manifest",
    "ManifestDraft",
    "Origin",
    "Problem",
    "Profile",
    "RoutedExpert",
    "RouterDraft",
    "RouterManifest",
    "RouterVersion",
    "Staged",
    "StoreBusy",
    "StoreError",
    "Training",
    "UnknownAlias",
    "UnknownExpert",
    "UnknownVersion",
    "Vector",
    "VersionInUse",
    "adapter_digest",
    "breathe",
    "breathe_by",
    "check_alias",
    "check_name",
    "complete_manifest",
    "copy_adapter",
    "digest_adapter",
    "file_record",
    "inspect_adapter",
    "parse_config",
    "parse_draft",
    "parse_manifest",
    "parse_router_draft",
    "read_centroid",
    "read_config",
    "read_header",
    "read_profile",
    "read_scaling",
    "verify_store",
]
