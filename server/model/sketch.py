"""Count sketch: very long vectors as short ones, so that dot products stay as they are on average. Knows no model.

    sketch(g)[b] = sum over i with bucket(i) = b of sign(i) * g[i]

(Charikar, Chen and Farach-Colton 2002; as a projection for learning: Weinberger et al. 2009.) A sparse
Johnson-Lindenstrauss matrix with one entry a column, which costs one addition a value where a dense one costs a row.
Buckets and signs come from a hash that is written out here, so that a seed means the same on every machine and release.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Legend: G values of the long vector, D of the short one.

DEFAULT_WIDTH = 8192
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Projection:
    """Which sketch: its width D, and the seed of its buckets and signs."""

    width: int = DEFAULT_WIDTH
    seed: int = 0


class CountSketch:
    """Buckets and signs for vectors of one length. Immutable."""

    def __init__(self, projection: Projection, length: int, device: torch.device) -> None:
        self.projection = projection
        bits_G = mixed_bits(length, projection.seed)
        bucket_G = (bits_G >> np.uint64(1)) % np.uint64(projection.width)
        self._bucket_G = torch.from_numpy(bucket_G.astype(np.int32)).to(device)
        self._sign_G = torch.from_numpy(1 - 2 * (bits_G & np.uint64(1)).astype(np.int8)).to(device)

    def __call__(self, vector_G: Tensor) -> Tensor:
        """[G] -> [D] fp32."""
        sketch_D = torch.zeros(self.projection.width, dtype=torch.float32, device=vector_G.device)
        return sketch_D.index_add_(0, self._bucket_G, vector_G.float() * self._sign_G)


def mixed_bits(length: int, seed: int) -> NDArray[np.uint64]:
    """64 well-mixed bits for each index: the output function of SplitMix64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        z = (np.arange(length, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        z += _finish(np.full(1, seed, dtype=np.uint64) + _GOLDEN)
        return _finish(z)


def _finish(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
