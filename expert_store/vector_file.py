"""Safetensors files that hold a vector of unit length and say, in strings, what it is a vector of. Knows no model.

A kind of file may hold a few more vectors of the same width, and say more; then all of them, or none.
"""

from collections.abc import Collection, Mapping, Set
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
UNIT_TOLERANCE = 1e-3

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class VectorFormat:
    """One kind of such files: its name in a folder, its tensor, what its metadata says, and which command makes it.

    `further` and `says_further` come together or not at all; those vectors need not be of unit length.
    """

    file_name: str
    tensor: str
    says: tuple[str, ...]
    made_by: str
    further: tuple[str, ...] = ()
    says_further: tuple[str, ...] = ()

    def to_bytes(self, vectors: Mapping[str, Vector], said: Mapping[str, str]) -> bytes:
        assert self._says(vectors) == said.keys(), "this is not what this kind of file holds. This is a bug."
        return save(dict(vectors), metadata=dict(said))

    def read(self, path: Path) -> tuple[Mapping[str, str], Mapping[str, Vector]]:
        """What the metadata says, and the vectors [D] by name, which nobody can change. Raises InvalidAdapter."""
        if not is_plain_file(path):
            raise self.refusal("is a link or a folder: give the file itself")
        size_bytes = path.stat().st_size
        if size_bytes > MAX_VECTOR_BYTES:
            raise self.refusal(f"has {size_bytes} bytes, at most {MAX_VECTOR_BYTES} are read")
        return self.parse(path.read_bytes())

    def parse(self, data: bytes) -> tuple[Mapping[str, str], Mapping[str, Vector]]:
        """As `read`."""
        header_bytes = int.from_bytes(data[:_LENGTH_BYTES], "little")
        start = _LENGTH_BYTES + header_bytes
        if len(data) < start or not data[_LENGTH_BYTES:start].startswith(b"{"):
            raise self.refusal(f"is not a safetensors file: its header would have {header_bytes} of {len(data)} bytes")
        entries = parse_object(data[_LENGTH_BYTES:start], self.file_name)
        metadata = entries.pop(_METADATA, None)
        says = self._says(entries)
        if says is None or metadata is None:
            further = f", or with {', '.join(map(repr, self.further))} beside it" if self.further else ""
            held = shown(str(sorted([*entries, *([] if metadata is None else [_METADATA])])))
            raise self.refusal(f"must hold {_METADATA} and one tensor {self.tensor!r}{further}, it holds {held}")
        return self._said(metadata, says), self._vectors(entries, data[start:])

    def refusal(self, message: str) -> InvalidAdapter:
        return InvalidAdapter(self.file_name, f"{self.file_name}: {message}")

    def _says(self, tensors: Collection[str]) -> Set[str] | None:
        """What a file with these tensors says; None where this kind of file has others."""
        names = set(tensors)
        if names == {self.tensor}:
            return set(self.says)
        if self.further and names == {self.tensor, *self.further}:
            return {*self.says, *self.says_further}
        return None

    def _said(self, metadata: Any, says: Set[str]) -> Mapping[str, str]:
        names = ", ".join(sorted(says))
        if not isinstance(metadata, dict) or metadata.keys() != says:
            raise self.refusal(f"its metadata must hold {names}, nothing else")
        if not all(isinstance(value, str) for value in metadata.values()):
            raise self.refusal(f"{names} in its metadata must be strings")
        return metadata

    def _vectors(self, entries: Mapping[str, Any], values: bytes) -> Mapping[str, Vector]:
        """Vectors of one width, which fill the file in some order."""
        num_bytes = len(values) // len(entries)
        free = {place * num_bytes for place in range(len(entries))}
        if num_bytes * len(entries) != len(values) or num_bytes % 4:
            raise self._no_vector(self.tensor)
        vectors = {}
        for name, entry in entries.items():
            begin = next((b for b in free if entry == _entry(b, num_bytes)), None)
            if begin is None:
                raise self._no_vector(name)
            free.remove(begin)
            vectors[name] = np.frombuffer(values[begin : begin + num_bytes], dtype="<f4").astype(np.float32)
            vectors[name].flags.writeable = False
        length = float(np.linalg.norm(vectors[self.tensor]))
        if not abs(length - 1) < UNIT_TOLERANCE:  # also where it is NaN
            raise self.refusal(f"its vector has length {length:g}, not 1: make it with `{self.made_by}`")
        return vectors

    def _no_vector(self, name: str) -> InvalidAdapter:
        held = "fills the file" if not self.further else "has its share of the file"
        return self.refusal(f"{name} must be one vector of F32 that {held}: make it with `{self.made_by}`")


def _entry(begin: int, num_bytes: int) -> dict[str, Any]:
    """What the header says of a vector there."""
    return {"dtype": "F32", "shape": [num_bytes // 4], "data_offsets": [begin, begin + num_bytes]}
