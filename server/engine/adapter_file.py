"""One expert's weights in memory, in as many bytes as its file has. Knows PEFT's format; nothing of slots.

The file's own number format takes half the bytes of fp32 for most adapters and loses nothing. The tensors a slot is
filled from are views of those bytes, made when they are needed: hundreds of tensor objects would weigh as much as a
small expert itself. Only B lies otherwise than in the file: turned as slots hold it, by the thread that reads, since
reading it against the grain is what takes longest when a slot is filled.
"""

import mmap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expert_store import WEIGHTS_FILE, ExpertVersion, InvalidAdapter, breathe, read_config, read_header, read_scaling
from server.model.lora import AdapterWeights, Terms

_PREFIX = "base_model.model."
_A_END, _B_END = ".lora_A.weight", ".lora_B.weight"
_COPIED_BYTES = 1 << 18  # at a time: under a millisecond, also where the system has to find new pages for them
_TURNED_BYTES = 1 << 20  # at a time: these pages are there, and short operations wait for the interpreter each
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class _Piece:
    """Where one tensor lies in the file."""

    offset_bytes: int
    dtype: torch.dtype
    shape: tuple[int, int]

    @property
    def num_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def of(self, data: mmap.mmap) -> Tensor:
        rows, columns = self.shape
        return torch.frombuffer(data, dtype=self.dtype, count=rows * columns, offset=self.offset_bytes).view(self.shape)


@dataclass(frozen=True)
class _Module:
    """`b` is of the matrix once it has been turned, [r, O]."""

    path: str
    a: _Piece
    b: _Piece
    scaling: float


@dataclass(frozen=True)
class AdapterFile:
    """The whole file, every B turned, in a memory map of its own, which goes back to the system with the last view."""

    data: mmap.mmap
    layout: tuple[_Module, ...]

    @property
    def rank(self) -> int:
        """The highest of its modules."""
        return max(module.b.shape[0] for module in self.layout)

    def weights(self) -> AdapterWeights:
        """Views of the bytes, which are not to be written to."""
        return AdapterWeights({module.path: self._terms(module) for module in self.layout})

    def _terms(self, module: _Module) -> Terms:
        return Terms(module.a.of(self.data), module.b.of(self.data), module.scaling)


def read_expert(expert: ExpertVersion) -> AdapterFile:
    """Reads an expert's files. Raises InvalidAdapter, also where they are others by now, or what the system raised."""
    file = read_adapter_file(expert.folder)
    found, recorded = (len(file.data), file.rank), (expert.weight_bytes, expert.rank)
    if found != recorded:
        raise InvalidAdapter(
            WEIGHTS_FILE,
            f"{WEIGHTS_FILE}: it has {found[0]} bytes and rank {found[1]}, recorded were {recorded[0]} and "
            f"{recorded[1]}, so it was changed",
        )
    return file


def read_adapter_file(folder: Path) -> AdapterFile:
    """Reads a PEFT adapter folder that the store has already judged valid.

    Raises InvalidAdapter, or what the file system raised.
    """
    try:
        layout = _shared(tuple(_layout(folder)))
    except (KeyError, IndexError) as error:
        raise InvalidAdapter(WEIGHTS_FILE, f"{WEIGHTS_FILE}: it lacks {error}, so it was damaged or changed") from error
    file = AdapterFile(_turned(_copy(folder / WEIGHTS_FILE), layout), layout)
    if not _all_are_finite(file) and not all(_is_finite(t.b, t.scaling) for t in file.weights().terms.values()):
        raise InvalidAdapter(WEIGHTS_FILE, f"{WEIGHTS_FILE}: its scaled weights are not finite: lower lora_alpha")
    return file


def _all_are_finite(file: AdapterFile) -> bool:
    """True if even the file's largest number, times its largest scaling, is finite; one look instead of hundreds.

    False says nothing: that number may be one of A, which is not scaled, or there is more than one number format.
    """
    pieces = [piece for module in file.layout for piece in (module.a, module.b)]
    if len({piece.dtype for piece in pieces}) != 1:
        return False
    start = min(piece.offset_bytes for piece in pieces)
    numbers = torch.frombuffer(file.data, dtype=pieces[0].dtype, offset=start)
    return _is_finite(numbers, max(abs(module.scaling) for module in file.layout))


def _is_finite(numbers: Tensor, scaling: float) -> bool:
    """In bf16, the narrowest range that slots have."""
    edges = torch.stack(numbers.aminmax()).float() * scaling
    return bool(edges.bfloat16().isfinite().all())


def _layout(folder: Path) -> Iterator[_Module]:
    config = read_config(folder)
    pieces = {}
    for tensor in read_header(folder / WEIGHTS_FILE):
        rows, columns = tensor.shape if tensor.key.endswith(_A_END) else reversed(tensor.shape)
        pieces[tensor.key] = _Piece(tensor.offset_bytes, _DTYPES[tensor.dtype], (rows, columns))
    for key, a in pieces.items():
        if key.endswith(_A_END):
            path = key.removeprefix(_PREFIX).removesuffix(_A_END)
            yield _Module(path, a, pieces[f"{_PREFIX}{path}{_B_END}"], read_scaling(config, path))


@lru_cache(maxsize=64)
def _shared(layout: tuple[_Module, ...]) -> tuple[_Module, ...]:
    """One object for all experts of the same shape, of which there may be thousands."""
    return layout


def _turned(data: mmap.mmap, layout: tuple[_Module, ...]) -> mmap.mmap:
    """The same bytes with every B [O, r], as files hold it, as [r, O] in its place.

    By numpy, as bare bits: it takes a fifth of torch's time, and does not ask for the interpreter in between.
    """
    for run in _runs(layout):
        rank, num_out = run.first.shape
        run.bits(data, rank, num_out)[...] = run.bits(data, num_out, rank).swapaxes(1, 2).copy()
        breathe()
    return data


@dataclass(frozen=True)
class _Run:
    """Pieces of one shape that lie at equal distances in bytes, so that one operation reaches them all."""

    first: _Piece
    num: int
    distance: int

    def bits(self, data: mmap.mmap, rows: int, columns: int) -> NDArray[Any]:
        size = self.first.dtype.itemsize
        strides = (self.distance, columns * size, size)
        return np.ndarray((self.num, rows, columns), f"u{size}", data, self.first.offset_bytes, strides)


def _runs(layout: tuple[_Module, ...]) -> Iterator[_Run]:
    """The B of all modules, those of one name in a model's layers together, about a megabyte at a time."""
    kinds: dict[tuple[str, torch.dtype, tuple[int, int]], list[_Piece]] = defaultdict(list)
    for module in layout:
        kinds[module.path.rpartition(".")[2], module.b.dtype, module.b.shape].append(module.b)
    for pieces in kinds.values():
        distances = {after.offset_bytes - before.offset_bytes for before, after in pairwise(pieces)}
        distance = distances.pop() if len(distances) == 1 else 0
        most = max(1, _TURNED_BYTES // pieces[0].num_bytes) if distance else 1
        for first in range(0, len(pieces), most):
            yield _Run(pieces[first], len(pieces[first : first + most]), distance)


def _copy(path: Path) -> mmap.mmap:
    """A file's bytes in private memory, so that nothing done to the file later can be seen or felt."""
    size_bytes = path.stat().st_size
    data = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with path.open("rb", buffering=0) as file, memoryview(data) as whole:
        copied = 0
        while num_bytes := file.readinto(whole[copied : copied + _COPIED_BYTES]):
            copied += num_bytes
            breathe()
    if copied != size_bytes:
        raise InvalidAdapter(WEIGHTS_FILE, f"{WEIGHTS_FILE}: it was cut while it was read")
    return data
