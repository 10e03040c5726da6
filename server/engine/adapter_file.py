"""Reads one expert's weights into memory, as many bytes as its file has. Knows PEFT's format; nothing of slots.

The file's own number format takes half the bytes of fp32 for most adapters and loses nothing. Only B lies otherwise
than in the file: turned as slots hold it, by the thread that reads, since reading it against the grain is what takes
longest when a slot is filled.
"""

import mmap
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expert_store import (
    A_END,
    B_END,
    KEY_START,
    WEIGHTS_FILE,
    CorruptStore,
    ExpertVersion,
    InvalidAdapter,
    breathe,
    read_config,
    read_header,
    read_scaling,
)
from server.model.adapter_weights import AdaptedLinear, AdapterWeights, Layout, Matrix

_COPIED_BYTES = 1 << 18  # at a time: under a millisecond, also where the system has to find new pages for them
_TURNED_BYTES = 1 << 20  # at a time: these pages are there, and short operations wait for the interpreter each
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_expert(expert: ExpertVersion, widths: Mapping[str, tuple[int, int]]) -> AdapterWeights:
    """Reads an expert's files, for a base whose linears have these (input, output) widths.

    They were checked when the expert was registered, but may have been changed since, and whoever writes slots trusts
    the shapes. Raises InvalidAdapter where they do not fit, or what the system raised.
    """
    weights = read_adapter_file(expert.folder)
    if not all(linear.fits(widths) for linear in weights.layout.linears):
        raise InvalidAdapter(WEIGHTS_FILE, f"{WEIGHTS_FILE}: its tensors do not fit this base, so it was changed")
    found, recorded = (len(weights.memory), weights.layout.rank), (expert.weight_bytes, expert.rank)
    if found != recorded:
        raise InvalidAdapter(
            WEIGHTS_FILE,
            f"{WEIGHTS_FILE}: it has {found[0]} bytes and rank {found[1]}, recorded were {recorded[0]} and "
            f"{recorded[1]}, so it was changed",
        )
    return weights


def unreadable(expert: ExpertVersion, cause: BaseException) -> CorruptStore:
    """What is told of a published expert whose files could not be read, in words without this machine's paths."""
    said = (isinstance(cause, OSError) and cause.strerror) or cause
    place = Path(*expert.folder.parts[-3:])
    return CorruptStore(place, f"{expert.ref} cannot be read any more: {said}: see `relay experts verify`")


def read_adapter_file(folder: Path) -> AdapterWeights:
    """Reads a PEFT adapter folder that the store has already judged valid.

    Raises InvalidAdapter, or what the file system raised.
    """
    try:
        layout = _shared(tuple(_linears(folder)))
    except (KeyError, IndexError) as error:
        raise InvalidAdapter(WEIGHTS_FILE, f"{WEIGHTS_FILE}: it lacks {error}, so it was damaged or changed") from error
    weights = AdapterWeights(_turned(_copy(folder / WEIGHTS_FILE), layout), layout)
    if not _all_are_finite(weights) and not all(_is_finite(t.b, t.scaling) for t in weights.terms().values()):
        raise InvalidAdapter(WEIGHTS_FILE, f"{WEIGHTS_FILE}: its scaled weights are not finite: lower lora_alpha")
    return weights


def _all_are_finite(weights: AdapterWeights) -> bool:
    """True if even the file's largest number, times its largest scaling, is finite; one look instead of hundreds.

    False says nothing: that number may be one of A, which is not scaled, or there is more than one number format.
    """
    linears, dtype = weights.layout.linears, weights.layout.dtype
    if dtype is None:
        return False
    start = min(matrix.offset_bytes for linear in linears for matrix in (linear.a, linear.b))
    numbers = torch.frombuffer(weights.memory, dtype=dtype, offset=start)
    return _is_finite(numbers, max(abs(linear.scaling) for linear in linears))


def _is_finite(numbers: Tensor, scaling: float) -> bool:
    """In bf16, the narrowest range that slots have."""
    edges = torch.stack(numbers.aminmax()).float() * scaling
    return bool(edges.bfloat16().isfinite().all())


def _linears(folder: Path) -> Iterator[AdaptedLinear]:
    config = read_config(folder)
    matrices = {}
    for tensor in read_header(folder / WEIGHTS_FILE):
        rows, columns = tensor.shape if tensor.key.endswith(A_END) else reversed(tensor.shape)
        matrices[tensor.key] = Matrix(tensor.offset_bytes, _DTYPES[tensor.dtype], (rows, columns))
    for key, a in matrices.items():
        if key.endswith(A_END):
            path = key.removeprefix(KEY_START).removesuffix(A_END)
            yield AdaptedLinear(path, a, matrices[f"{KEY_START}{path}{B_END}"], read_scaling(config, path))


@lru_cache(maxsize=64)
def _shared(linears: tuple[AdaptedLinear, ...]) -> Layout:
    """One object for all experts of the same shape, of which there may be thousands."""
    return Layout(linears)


def _turned(memory: mmap.mmap, layout: Layout) -> mmap.mmap:
    """The same bytes with every B [O, r], as files hold it, as [r, O] in its place.

    By numpy, as bare bits: it takes a fifth of torch's time, and does not ask for the interpreter in between.
    """
    for run in _runs(layout):
        rank, num_out = run.first.shape
        run.bits(memory, rank, num_out)[...] = run.bits(memory, num_out, rank).swapaxes(1, 2).copy()
        breathe()
    return memory


@dataclass(frozen=True)
class _Run:
    """Matrices of one shape that lie at equal distances in bytes, so that one operation reaches them all."""

    first: Matrix
    num: int
    distance: int

    def bits(self, memory: mmap.mmap, rows: int, columns: int) -> NDArray[Any]:
        size = self.first.dtype.itemsize
        strides = (self.distance, columns * size, size)
        return np.ndarray((self.num, rows, columns), f"u{size}", memory, self.first.offset_bytes, strides)


def _runs(layout: Layout) -> Iterator[_Run]:
    """The B of all modules, those of one name in a model's layers together, about a megabyte at a time."""
    kinds: dict[tuple[str, torch.dtype, tuple[int, int]], list[Matrix]] = defaultdict(list)
    for linear in layout.linears:
        kinds[linear.path.rpartition(".")[2], linear.b.dtype, linear.b.shape].append(linear.b)
    for matrices in kinds.values():
        distances = {after.offset_bytes - before.offset_bytes for before, after in pairwise(matrices)}
        distance = distances.pop() if len(distances) == 1 else 0
        most = max(1, _TURNED_BYTES // matrices[0].num_bytes) if distance else 1
        for first in range(0, len(matrices), most):
            yield _Run(matrices[first], len(matrices[first : first + most]), distance)


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
