"""adapter_model.safetensors: its header, and whether its numbers can be trusted. Knows no config and no base model.

Nothing is loaded: the header is read with caps, the numbers are looked at a piece at a time.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from expert_store.breath import breathe
from expert_store.errors import InvalidAdapter, shown
from expert_store.json_text import parse_object

WEIGHTS_FILE = "adapter_model.safetensors"
KEY_START = "base_model.model."  # of a factor's key; the module's path follows
A_END, B_END = ".lora_A.weight", ".lora_B.weight"
MAX_HEADER_BYTES = 4 * 1024 * 1024
MAX_DIMENSIONS = 8
_LENGTH_BYTES = 8
_PIECE_VALUES = 1 << 17
_TOO_LARGE = 1 << 63  # for a file, and for messages that repeat it
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")


@dataclass(frozen=True)
class _Format:
    """Unsigned integers of the same width, which under `magnitude` stand in the order of the values' magnitudes: behind
    infinity come the NaNs."""

    bits: DTypeLike
    size_bytes: int
    infinity: int
    magnitude: int


_FORMATS = {
    "F32": _Format(np.uint32, 4, 0x7F80_0000, 0x7FFF_FFFF),
    "F16": _Format(np.uint16, 2, 0x7C00, 0x7FFF),
    "BF16": _Format(np.uint16, 2, 0x7F80, 0x7FFF),
}


@dataclass(frozen=True)
class Tensor:
    """One entry of the header; `offset_bytes` counts from the start of the file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.num_values * _FORMATS[self.dtype].size_bytes


def read_header(path: Path) -> tuple[Tensor, ...]:
    """The tensors of a safetensors file, which together fill it without gap or overlap. Raises InvalidAdapter."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES)
        header_bytes = int.from_bytes(start, "little")
        if len(start) < _LENGTH_BYTES or not 2 <= header_bytes <= size_bytes - _LENGTH_BYTES:
            raise _not_safetensors(start, f"its header would have {header_bytes} of {size_bytes} bytes")
        if header_bytes > MAX_HEADER_BYTES:
            raise _not_safetensors(start, f"its header has {header_bytes} bytes, at most {MAX_HEADER_BYTES} are read")
        header = file.read(header_bytes)
    if not header.startswith(b"{"):
        raise _not_safetensors(start, "its header does not begin with '{'")
    return _parse_header(header, size_bytes)


@lru_cache(maxsize=4)  # the same header is read when an adapter is checked and when it is loaded
def _parse_header(header: bytes, size_bytes: int) -> tuple[Tensor, ...]:
    entries = parse_object(header, WEIGHTS_FILE)
    _check_metadata(entries.pop("__metadata__", None))
    data_start = _LENGTH_BYTES + len(header)
    tensors = sorted((_tensor(key, entry, data_start) for key, entry in entries.items()), key=_by_offset)
    _check_tiling(tensors, data_start, size_bytes)
    return tuple(tensors)


def check_finite(path: Path, tensors: tuple[Tensor, ...]) -> None:
    """Looks at every number of what `read_header` gave once. Raises InvalidAdapter for NaN and infinity."""
    with path.open("rb") as file:
        for dtype, alike in groupby(tensors, key=_dtype):
            run, form = list(alike), _FORMATS[dtype]
            together = Tensor(dtype, dtype, (sum(tensor.num_values for tensor in run),), run[0].offset_bytes)
            if _largest(file, together) >= form.infinity:
                wrong = next(tensor for tensor in run if _largest(file, tensor) >= form.infinity)
                raise _refusal(f"{shown(wrong.key)} holds NaN or infinite values: train it again with a lower rate")


def has_effect(path: Path, products: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Whether a product has two factors that are not all zero; looks no further than that one."""
    with path.open("rb") as file:
        return any(_largest(file, a) > 0 and _largest(file, b) > 0 for a, b in products)


def _largest(file: BinaryIO, tensor: Tensor) -> int:
    """The bits of its largest magnitude; 0 if all are zero or there are none."""
    form, largest, left = _FORMATS[tensor.dtype], 0, tensor.num_values
    file.seek(tensor.offset_bytes)
    while left:
        piece = np.fromfile(file, form.bits, min(_PIECE_VALUES, left))
        assert piece.size, "a tensor goes on behind the file's end. This is a bug."
        largest = max(largest, int((piece & form.magnitude).max()))
        left -= piece.size
        breathe()
    return largest


def _tensor(key: str, entry: Any, data_start: int) -> Tensor:
    breathe()
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _refusal(f"the header entry of {shown(key)} must hold dtype, shape and data_offsets, nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _FORMATS:
        raise _refusal(f"{shown(key)} has dtype {shown(str(dtype))}: use one of {', '.join(_FORMATS)}")
    if not _are_counts(shape, 0, MAX_DIMENSIONS) or not _are_counts(offsets, 2, 2):
        raise _refusal(f"{shown(key)}: shape and data_offsets must be short lists of non-negative integers")
    tensor = Tensor(key, dtype, tuple(shape), data_start + offsets[0])
    if offsets[1] - offsets[0] != tensor.size_bytes:
        raise _refusal(f"{shown(key)} has {offsets[1] - offsets[0]} bytes, its shape needs {tensor.size_bytes}")
    return tensor


def _are_counts(value: Any, fewest: int, most: int) -> bool:
    if not isinstance(value, list) or not fewest <= len(value) <= most:
        return False
    return all(type(item) is int and 0 <= item < _TOO_LARGE for item in value)


def _dtype(tensor: Tensor) -> str:
    return tensor.dtype


def _by_offset(tensor: Tensor) -> tuple[int, int]:
    return tensor.offset_bytes, tensor.size_bytes


def _check_tiling(tensors: list[Tensor], data_start: int, size_bytes: int) -> None:
    end = data_start
    for tensor in tensors:
        if tensor.offset_bytes != end:
            raise _refusal(f"{shown(tensor.key)} begins at byte {tensor.offset_bytes}, expected {end}: overlap or gap")
        end += tensor.size_bytes
    if end != size_bytes:
        raise _refusal(f"the header declares {end} bytes, the file has {size_bytes}: it is cut or has been added to")


def _check_metadata(metadata: Any) -> None:
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise _refusal("__metadata__ must map strings to strings")


def _not_safetensors(start: bytes, why: str) -> InvalidAdapter:
    if start.startswith(_PICKLE_STARTS):
        why = "it is a pickle, which can run code when loaded"
    return _refusal(f"not a safetensors file: {why}: save the adapter with safe_serialization=True")


def _refusal(message: str) -> InvalidAdapter:
    return InvalidAdapter(WEIGHTS_FILE, f"{WEIGHTS_FILE}: {message}")
