"""One expert's weights in memory, in as many bytes as its file has. Knows PEFT's format; nothing of slots.

The file's own number format takes half the bytes of fp32 for most adapters and loses nothing. The tensors a slot is
filled from are views of those bytes, made when they are needed: hundreds of tensor objects would weigh as much as a
small expert itself. Only B lies otherwise than in the file: turned as slots hold it, by the thread that reads, since
reading it against the grain is what takes longest when a slot is filled.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from expert_store import WEIGHTS_FILE, InvalidAdapter, read_config, read_header, read_scaling
from server.model.lora import AdapterWeights, Terms

_PREFIX = "base_model.model."
_A_END, _B_END = ".lora_A.weight", ".lora_B.weight"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class _Piece:
    """Where one tensor lies in the file."""

    offset_bytes: int
    dtype: torch.dtype
    shape: tuple[int, int]

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

    def weights(self) -> AdapterWeights:
        """Views of the bytes, which are not to be written to."""
        return AdapterWeights({module.path: self._terms(module) for module in self.layout})

    def _terms(self, module: _Module) -> Terms:
        return Terms(module.a.of(self.data), module.b.of(self.data), module.scaling)


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
    """The same bytes with every B [O, r], as files hold it, as [r, O] in its place."""
    for module in layout:
        b_rO = module.b.of(data)
        b_rO.copy_(b_rO.view(b_rO.shape[::-1]).T.clone())
    return data


def _copy(path: Path) -> mmap.mmap:
    """A file's bytes in private memory, so that nothing done to the file later can be seen or felt."""
    size_bytes = path.stat().st_size
    data = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with path.open("rb") as file:
        if file.readinto(data) != size_bytes:
            raise InvalidAdapter(WEIGHTS_FILE, f"{WEIGHTS_FILE}: it was cut while it was read")
    return data
