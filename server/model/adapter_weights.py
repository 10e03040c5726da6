"""One expert's weights in one piece of memory, and where its matrices lie in it. Knows no files, slots or devices.

The tensors of an expert are views, made when they are needed: hundreds of tensor objects would weigh as much as a small
expert itself. What describes its memory is shared by all experts of one shape, of which there may be thousands.
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

# Legend: I/O input and output width of a linear, r an expert's rank.


class Terms(NamedTuple):
    """What an expert adds to one linear: a [r, I] and b [r, O] in any number format, and the factor for `b`."""

    a: Tensor
    b: Tensor
    scaling: float = 1.0


class Matrix(NamedTuple):
    """Where one lies, row by row."""

    offset_bytes: int
    dtype: torch.dtype
    shape: tuple[int, int]

    @property
    def num_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def of(self, memory: mmap.mmap) -> Tensor:
        rows, columns = self.shape
        numbers = torch.frombuffer(memory, dtype=self.dtype, count=rows * columns, offset=self.offset_bytes)
        return numbers.view(self.shape)

    def of_bytes(self, bytes_: Tensor) -> Tensor:
        """The same of a tensor of bytes, on any device."""
        piece = bytes_[self.offset_bytes : self.offset_bytes + self.num_bytes]
        aligned = self.offset_bytes % self.dtype.itemsize == 0
        return (piece if aligned else piece.clone()).view(self.dtype).view(self.shape)


class AdaptedLinear(NamedTuple):
    """One linear's part: a [r, I] and b [r, O]."""

    path: str
    a: Matrix
    b: Matrix
    scaling: float

    def fits(self, widths: Mapping[str, tuple[int, int]]) -> bool:
        """Whether it belongs to a model whose linears have these (input, output) widths."""
        num_in, num_out = widths.get(self.path, (0, 0))
        rank = self.b.shape[0]
        return (self.a.shape, self.b.shape) == ((rank, num_in), (rank, num_out))


@dataclass(frozen=True, eq=False)
class Layout:
    """How all experts of one shape lie in memory."""

    linears: tuple[AdaptedLinear, ...]

    @property
    def rank(self) -> int:
        """The highest of its linears."""
        return max(linear.b.shape[0] for linear in self.linears)

    @cached_property
    def paths(self) -> frozenset[str]:
        return frozenset(linear.path for linear in self.linears)

    @cached_property
    def dtype(self) -> torch.dtype | None:
        """The number format of all matrices; None where they differ."""
        dtypes = {matrix.dtype for linear in self.linears for matrix in (linear.a, linear.b)}
        return dtypes.pop() if len(dtypes) == 1 else None


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """Nobody writes to the memory; it goes back to the system with the last view."""

    memory: mmap.mmap
    layout: Layout

    def terms(self, device: torch.device | None = None) -> Mapping[str, Terms]:
        """Views of the memory, by module path; or of a copy on a GPU, made in one piece: hundreds of matrices would
        each wait for the way there."""
        if device is None or device.type == "cpu":
            views = {path: (a.of(self.memory), b.of(self.memory)) for path, a, b, _ in self.layout.linears}
        else:
            bytes_ = torch.frombuffer(self.memory, dtype=torch.uint8).to(device)
            views = {path: (a.of_bytes(bytes_), b.of_bytes(bytes_)) for path, a, b, _ in self.layout.linears}
        return {linear.path: Terms(*views[linear.path], linear.scaling) for linear in self.layout.linears}
