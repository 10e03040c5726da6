"""L2R's routers (arXiv 2408.09053): from the states of a prompt to each expert's weight in each layer.

    g = sigmoid(W_l h_l + b_l)        weight = g / sum g        (softmax gates: weight = softmax(W_l h_l + b_l))

Knows numbers; nothing of experts' names, prompts or training.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from expert_store import CorruptStore, Gates

Array = NDArray[np.float32]

# Legend: L decoder layers, E experts, D hidden width.


@dataclass(frozen=True, eq=False)
class GateNetwork:
    """One router a layer. A row of zeros, bias included, is a closed gate: its expert takes no part in that layer."""

    weight_LED: Array
    bias_LE: Array
    gates: Gates

    def weights(self, states_LD: Array) -> Array:
        """[L, E] fp32; in a layer they sum to 1, or are all 0 where every gate is closed."""
        logit_LE = np.einsum("led,ld->le", self.weight_LED, states_LD, dtype=np.float64) + self.bias_LE
        # log g: g itself may be too small for a float in all experts at once
        score_LE = -np.logaddexp(0, -logit_LE) if self.gates == "sigmoid" else logit_LE
        open_LE = self.weight_LED.any(axis=2) | (self.bias_LE != 0)
        score_LE = np.where(open_LE, score_LE, -np.inf)
        most_L1 = score_LE.max(axis=1, keepdims=True)
        share_LE = np.exp(score_LE - np.where(np.isneginf(most_L1), 0, most_L1))
        total_L1 = share_LE.sum(axis=1, keepdims=True)
        weight_LE: Array = (share_LE / np.where(total_L1 == 0, 1, total_L1)).astype(np.float32)
        return weight_LE

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return save({"weight": self.weight_LED, "bias": self.bias_LE})


def read_network(path: Path, *, gates: Gates, shape: tuple[int, int, int]) -> GateNetwork:
    """A network of (L, E, D). Raises CorruptStore."""
    try:
        return parse_network(path.read_bytes(), gates=gates, shape=shape)
    except ValueError as error:
        raise CorruptStore(path, f"{error}: train it anew with `relay train router`") from None


def parse_network(data: bytes, *, gates: Gates, shape: tuple[int, int, int]) -> GateNetwork:
    """A network of (L, E, D) from the bytes of a safetensors file. Raises ValueError."""
    try:
        tensors = load(data)
        network = GateNetwork(tensors["weight"], tensors["bias"], gates)
    except (SafetensorError, KeyError, TypeError) as error:  # KeyError also for number formats numpy does not have
        raise ValueError(f"is not a router's file: {error}") from None
    shapes = (network.weight_LED.shape, network.bias_LE.shape)
    if shapes != (shape, shape[:2]) or {tensor.dtype for tensor in tensors.values()} != {np.dtype(np.float32)}:
        raise ValueError(f"holds {shapes}, not fp32 numbers of shape {shape}")
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError("holds NaN or infinite values")
    return network
