"""centroid.safetensors: the gradient feature that an expert's prompts have in common (ELREA). Knows no model and no way
to make one.

The file says on which base, through which base adapter, as which feature and with which projection it was made:
gradients through another adapter are gradients of another function, and cannot be compared.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from expert_store.contents import ADAPTER_FILES
from expert_store.disk import file_sha256
from expert_store.vector_file import Vector, VectorFormat

CENTROID_FILE = "centroid.safetensors"
BASE_ALIAS = "gradient-base"  # of the one version whose adapter the pool's gradients are taken through
_TENSOR = "centroid"
_SAYS = ("base_fingerprint", "base_adapter", "feature", "projection_seed")
_FORMAT = VectorFormat(CENTROID_FILE, _TENSOR, _SAYS, "relay train elrea")
_SEED_DIGITS = 19


@dataclass(frozen=True)
class Origin:
    """What features must have in common to be compared; their width, too, but that shows.

    `base_adapter` is the digest of the adapter whose gradients they are (`adapter_digest`).
    """

    base_fingerprint: str
    base_adapter: str
    feature: str
    projection_seed: int


@dataclass(frozen=True, eq=False)
class Centroid:
    """One vector [D] of unit length, which nobody changes, and where it comes from."""

    origin: Origin
    vector_D: Vector

    def to_bytes(self) -> bytes:
        said = {name: str(getattr(self.origin, name)) for name in _SAYS}
        return _FORMAT.to_bytes({_TENSOR: self.vector_D}, said)


def read_centroid(path: Path) -> Centroid:
    """Raises InvalidAdapter."""
    return _centroid(*_FORMAT.read(path))


def parse_centroid(data: bytes) -> Centroid:
    """Reads the file's bytes. Raises InvalidAdapter."""
    return _centroid(*_FORMAT.parse(data))


def adapter_digest(sha256_by_file: Mapping[str, str]) -> str:
    """Names an adapter by what it computes: sha256 over those of PEFT's two files, wherever and however published."""
    digests = " ".join(sha256_by_file[name] for name in ADAPTER_FILES)
    return "sha256:" + hashlib.sha256(digests.encode()).hexdigest()


def digest_adapter(folder: Path) -> str:
    """The same for PEFT's two files in a folder. Raises OSError."""
    return adapter_digest({name: file_sha256(folder / name) for name in ADAPTER_FILES})


def _centroid(said: Mapping[str, str], vectors: Mapping[str, Vector]) -> Centroid:
    seed = said["projection_seed"]
    if not (seed.isdecimal() and seed.isascii() and len(seed) <= _SEED_DIGITS):
        raise _FORMAT.refusal("projection_seed in its metadata must be a number from 0")
    origin = Origin(said["base_fingerprint"], said["base_adapter"], said["feature"], int(seed))
    return Centroid(origin, vectors[_TENSOR])
