"""A base whose linears add the weighted outputs of frozen LoRAs, through which gradients reach the weights.

Knows layers and PEFT's files; nothing of routers, rows or files of data. The weights of a pass, one a row, layer and
expert, lie on a board that all layers read.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from expert_store import WEIGHTS_FILE, ExpertVersion, read_config, read_scaling
from server.model.lora import layer_of
from training.errors import InvalidRun

# Legend: N rows, S tokens, L decoder layers, E experts, R the ranks of all experts together, I/O a linear's widths.

_PREFIX = "base_model.model."


class Board:
    """The weights [N, L, E] that the next pass uses."""

    def __init__(self) -> None:
        self.weight_NLE: Tensor | None = None


class Factors(NamedTuple):
    """One expert's terms for one linear: a [r, I] and b [O, r], the scaling in b."""

    a: Tensor
    b: Tensor


class ComposedLinear(nn.Module):
    """y = W x + sum over experts of weight_e * B_e A_e x."""

    def __init__(self, base: nn.Module, factors: Mapping[int, Factors], layer: int, board: Board) -> None:
        super().__init__()
        self.base = base
        self._layer = layer
        self._board = board
        self.a_RI = torch.cat([of.a for of in factors.values()])
        self.b_OR = torch.cat([of.b for of in factors.values()], dim=1)
        # expert_R[r] is the expert whose term stands in row r of a
        self.expert_R = torch.tensor([expert for expert, of in factors.items() for _ in range(len(of.a))])

    def forward(self, x_NSI: Tensor) -> Tensor:
        """[N, S, O]."""
        y_NSO: Tensor = self.base(x_NSI)
        weight_NLE = self._board.weight_NLE
        assert weight_NLE is not None, "a pass needs weights on the board. This is a bug."
        weight_N1R = weight_NLE[:, self._layer][:, None, self.expert_R].to(x_NSI.dtype)
        return y_NSO + ((x_NSI @ self.a_RI.T) * weight_N1R) @ self.b_OR.T


def compose(model: PreTrainedModel, experts: Sequence[ExpertVersion], board: Board) -> None:
    """Puts the experts beside the model's linears, in place. Raises InvalidRun for what cannot be composed."""
    factors: dict[str, dict[int, Factors]] = {}
    like = next(model.parameters())
    for index, expert in enumerate(experts):
        for path, of in _read_factors(expert).items():
            moved = Factors(of.a.to(like.device, like.dtype), of.b.to(like.device, like.dtype))
            factors.setdefault(path, {})[index] = moved
    for path, of_experts in factors.items():
        layer = layer_of(path)
        if layer is None:
            raise InvalidRun(f"{path} is in no decoder layer, so no router can weigh what experts add to it")
        parent_path, _, attribute = path.rpartition(".")
        parent = model.get_submodule(parent_path)
        setattr(parent, attribute, ComposedLinear(getattr(parent, attribute), of_experts, layer, board))


def _read_factors(expert: ExpertVersion) -> dict[str, Factors]:
    """By module path; fp32."""
    config = read_config(expert.folder)
    tensors = load_file(expert.folder / WEIGHTS_FILE)
    paths = [key.removeprefix(_PREFIX).removesuffix(".lora_A.weight") for key in tensors if key.endswith("A.weight")]
    return {
        path: Factors(
            tensors[f"{_PREFIX}{path}.lora_A.weight"].float(),
            tensors[f"{_PREFIX}{path}.lora_B.weight"].float() * read_scaling(config, path),
        )
        for path in paths
    }
