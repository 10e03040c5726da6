"""profile.safetensors: what the prompts of a version look like, as one vector. Knows no model and no way to make one.

The file holds one tensor, `profile`, and says in its metadata on which base, and as which feature of a prompt, it was
made: vectors of different features cannot be compared.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from expert_store.disk import is_plain_file
from expert_store.errors import InvalidAdapter, shown
from expert_store.json_text import parse_object

PROFILE_FILE = "profile.safetensors"
MAX_PROFILE_BYTES = 1024 * 1024
_TENSOR = "profile"
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_UNIT_TOLERANCE = 1e-3

Vector = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Profile:
    """One vector [D] of unit length, which nobody changes, and what it is a vector of."""

    base_fingerprint: str
    feature: str
    vector_D: Vector

    def to_bytes(self) -> bytes:
        metadata = {"base_fingerprint": self.base_fingerprint, "feature": self.feature}
        return save({_TENSOR: self.vector_D}, metadata=metadata)


def read_profile(path: Path) -> Profile:
    """Raises InvalidAdapter."""
    if not is_plain_file(path):
        raise _refusal("is a link or a folder: give the file itself")
    size_bytes = path.stat().st_size
    if size_bytes > MAX_PROFILE_BYTES:
        raise _refusal(f"has {size_bytes} bytes, at most {MAX_PROFILE_BYTES} are read")
    return parse_profile(path.read_bytes())


def parse_profile(data: bytes) -> Profile:
    """Reads the file's bytes. Raises InvalidAdapter."""
    header_bytes = int.from_bytes(data[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + header_bytes
    if len(data) < start or not data[_LENGTH_BYTES:start].startswith(b"{"):
        raise _refusal(f"is not a safetensors file: its header would have {header_bytes} of {len(data)} bytes")
    entries = parse_object(data[_LENGTH_BYTES:start], PROFILE_FILE)
    if entries.keys() != {_METADATA, _TENSOR}:
        raise _refusal(f"must hold {_METADATA} and one tensor {_TENSOR!r}, it holds {shown(str(sorted(entries)))}")
    fingerprint, feature = _said(entries[_METADATA])
    return Profile(fingerprint, feature, _vector(entries[_TENSOR], data[start:]))


def _said(metadata: Any) -> tuple[str, str]:
    """(base fingerprint, feature)."""
    if not isinstance(metadata, dict) or metadata.keys() != {"base_fingerprint", "feature"}:
        raise _refusal("its metadata must hold base_fingerprint and feature, nothing else")
    fingerprint, feature = metadata["base_fingerprint"], metadata["feature"]
    if not isinstance(fingerprint, str) or not isinstance(feature, str):
        raise _refusal("base_fingerprint and feature in its metadata must be strings")
    return fingerprint, feature


def _vector(entry: Any, values: bytes) -> Vector:
    width = len(values) // 4
    if entry != {"dtype": "F32", "shape": [width], "data_offsets": [0, 4 * width]} or len(values) != 4 * width:
        raise _refusal(f"{_TENSOR} must be one vector of F32 that fills the file: make it with `relay train see`")
    vector_D = np.frombuffer(values, dtype="<f4").astype(np.float32)
    length = float(np.linalg.norm(vector_D))
    if not abs(length - 1) < _UNIT_TOLERANCE:  # also where it is NaN
        raise _refusal(f"its vector has length {length:g}, not 1: make it with `relay train see`")
    vector_D.flags.writeable = False
    return vector_D


def _refusal(message: str) -> InvalidAdapter:
    return InvalidAdapter(PROFILE_FILE, f"{PROFILE_FILE}: {message}")
