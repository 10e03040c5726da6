"""A base whose linears add the weighted outputs of frozen LoRAs, or the output of their weighted factors.

Knows layers and PEFT's files; nothing of routers, rows or files of data. The weights of a pass, one a row, layer and
expert, lie on a board that all layers read; gradients reach them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from expert_store import A_END, B_END, KEY_START, WEIGHTS_FILE, read_config, read_scaling
from server.model.lora import layer_of
from training.errors import InvalidRun

# Legend: N rows, S tokens, L decoder layers, E experts, R the ranks of all experts together, I/O a linear's widths.


class Board:
    """The weights [N, L, E] that the next pass uses."""

    def __init__(self) -> None:
        self.weight_NLE: Tensor | None = None

    def of_layer(self, layer: int) -> Tensor:
        """[N, E]."""
        assert self.weight_NLE is not None, "a pass needs weights on the board. This is a bug."
        return self.weight_NLE[:, layer]


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
        weight_N1R = self._board.of_layer(self._layer)[:, None, self.expert_R].to(x_NSI.dtype)
        return y_NSO + ((x_NSI @ self.a_RI.T) * weight_N1R) @ self.b_OR.T


class MergedLinear(nn.Module):
    """y = W x + (sum over experts of weight_e * B_e) (sum over experts of weight_e * A_e) x.

    Averaging A and B apart has cross terms B_e A_f, so it is not averaging the products. Each expert has the same rank.
    """

    def __init__(self, base: nn.Module, factors: Mapping[int, Factors], layer: int, board: Board) -> None:
        """Raises InvalidRun where ranks differ: such factors cannot be added up."""
        super().__init__()
        ranks = {len(of.a) for of in factors.values()}
        if len(ranks) > 1:
            raise InvalidRun(f"experts of ranks {', '.join(map(str, sorted(ranks)))} have no factors to average")
        self.base = base
        self._layer = layer
        self._board = board
        self.a_ERI = torch.stack([of.a for of in factors.values()])
        self.b_EOR = torch.stack([of.b for of in factors.values()])
        self.expert_E = torch.tensor(list(factors))

    def forward(self, x_NSI: Tensor) -> Tensor:
        """[N, S, O]."""
        y_NSO: Tensor = self.base(x_NSI)
        weight_NE = self._board.of_layer(self._layer)[:, self.expert_E].to(x_NSI.dtype)
        a_NRI = torch.einsum("ne,eri->nri", weight_NE, self.a_ERI)
        b_NOR = torch.einsum("ne,eor->nor", weight_NE, self.b_EOR)
        return y_NSO + (x_NSI @ a_NRI.transpose(1, 2)) @ b_NOR.transpose(1, 2)


def compose(
    model: PreTrainedModel,
    adapters: Sequence[Path],
    board: Board,
    linear: type[ComposedLinear | MergedLinear] = ComposedLinear,
) -> None:
    """Puts the adapters of these folders beside the model's linears, in place.

    Raises InvalidRun for what cannot be composed.
    """
    factors: dict[str, dict[int, Factors]] = {}
    like = next(model.parameters())
    for index, folder in enumerate(adapters):
        for path, of in _read_factors(folder).items():
            moved = Factors(of.a.to(like.device, like.dtype), of.b.to(like.device, like.dtype))
            factors.setdefault(path, {})[index] = moved
    for path, of_experts in factors.items():
        layer = layer_of(path)
        if layer is None:
            raise InvalidRun(f"{path} is in no decoder layer, so no router can weigh what experts add to it")
        parent_path, _, attribute = path.rpartition(".")
        parent = model.get_submodule(parent_path)
        setattr(parent, attribute, linear(getattr(parent, attribute), of_experts, layer, board))


def _read_factors(folder: Path) -> dict[str, Factors]:
    """By module path; fp32."""
    config = read_config(folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    paths = [key.removeprefix(KEY_START).removesuffix(A_END) for key in tensors if key.endswith(A_END)]
    return {
        path: Factors(
            tensors[f"{KEY_START}{path}{A_END}"].float(),
            tensors[f"{KEY_START}{path}{B_END}"].float() * read_scaling(config, path),
        )
        for path in paths
    }
