"""Safetensors files that hold one vector of unit length and say, in strings, what it is a vector of. Knows no model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from expert_store.disk import is_plain_file
from expert_store.errors import InvalidAdapter, shown
from expert_store.json_text import parse_object

MAX_VECTOR_BYTES = 1024 * 1024
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_UNIT_TOLERANCE = 1e-3

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class VectorFormat:
    """One kind of such files: its name in a folder, its tensor, what its metadata says, and which command makes it."""

    file_name: str
    tensor: str
    says: tuple[str, ...]
    made_by: str

    def to_bytes(self, vector_D: Vector, said: Mapping[str, str]) -> bytes:
        assert said.keys() == set(self.says), "the metadata is not what this kind of file says. This is a bug."
        return save({self.tensor: vector_D}, metadata=dict(said))

    def read(self, path: Path) -> tuple[Mapping[str, str], Vector]:
        """What the metadata says, and the vector [D], which nobody can change. Raises InvalidAdapter."""
        if not is_plain_file(path):
            raise self.refusal("is a link or a folder: give the file itself")
        size_bytes = path.stat().st_size
        if size_bytes > MAX_VECTOR_BYTES:
            raise self.refusal(f"has {size_bytes} bytes, at most {MAX_VECTOR_BYTES} are read")
        return self.parse(path.read_bytes())

    def parse(self, data: bytes) -> tuple[Mapping[str, str], Vector]:
        """As `read`."""
        header_bytes = int.from_bytes(data[:_LENGTH_BYTES], "little")
        start = _LENGTH_BYTES + header_bytes
        if len(data) < start or not data[_LENGTH_BYTES:start].startswith(b"{"):
            raise self.refusal(f"is not a safetensors file: its header would have {header_bytes} of {len(data)} bytes")
        entries = parse_object(data[_LENGTH_BYTES:start], self.file_name)
        if entries.keys() != {_METADATA, self.tensor}:
            held = shown(str(sorted(entries)))
            raise self.refusal(f"must hold {_METADATA} and one tensor {self.tensor!r}, it holds {held}")
        return self._said(entries[_METADATA]), self._vector(entries[self.tensor], data[start:])

    def refusal(self, message: str) -> InvalidAdapter:
        return InvalidAdapter(self.file_name, f"{self.file_name}: {message}")

    def _said(self, metadata: Any) -> Mapping[str, str]:
        names = ", ".join(self.says)
        if not isinstance(metadata, dict) or metadata.keys() != set(self.says):
            raise self.refusal(f"its metadata must hold {names}, nothing else")
        if not all(isinstance(value, str) for value in metadata.values()):
            raise self.refusal(f"{names} in its metadata must be strings")
        return metadata

    def _vector(self, entry: Any, values: bytes) -> Vector:
        width = len(values) // 4
        if entry != {"dtype": "F32", "shape": [width], "data_offsets": [0, 4 * width]} or len(values) != 4 * width:
            raise self.refusal(
                f"{self.tensor} must be one vector of F32 that fills the file: make it with `{self.made_by}`"
            )
        vector_D = np.frombuffer(values, dtype="<f4").astype(np.float32)
        length = float(np.linalg.norm(vector_D))
        if not abs(length - 1) < _UNIT_TOLERANCE:  # also where it is NaN
            raise self.refusal(f"its vector has length {length:g}, not 1: make it with `{self.made_by}`")
        vector_D.flags.writeable = False
        return vector_D
