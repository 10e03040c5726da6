"""Terms as an expert's file holds them, without a file."""

import mmap
from collections.abc import Mapping

import torch

from server.model.adapter_weights import AdaptedLinear, AdapterWeights, Layout, Matrix, Terms


def in_one_piece(terms: Mapping[str, Terms]) -> AdapterWeights:
    """The same numbers in one piece of memory, behind six bytes of something else."""
    data, linears = bytearray(b"header"), []
    for path, (a, b, scaling) in terms.items():
        places = []
        for matrix in (a, b):
            rows, columns = matrix.shape
            places.append(Matrix(len(data), matrix.dtype, (rows, columns)))
            data += matrix.contiguous().view(torch.uint8).numpy().tobytes()
        linears.append(AdaptedLinear(path, places[0], places[1], scaling))
    memory = mmap.mmap(-1, len(data))
    memory.write(data)
    return AdapterWeights(memory, Layout(tuple(linears)))
