"""L2R's gates while they are trained: noise, temperature, steps, losses through a composed model. Knows no files."""

import random
from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from expert_store import Gates
from server.model.gates import Array, GateNetwork
from training.batches import in_parts, on_device, pad_rows
from training.composed import Board
from training.data import Example
from training.suffix import as_the_model_scales

# Legend: P prompts of the memory, N rows of a step, S tokens, L decoder layers, E experts, D hidden width, W labels.


class RouterPart(TypedDict):
    """Rows that go through the model together, padded on the right, and their places in the memory.

    `hidden_at_W` indexes the flattened [N * S] hidden states whose next token is `target_W`.
    """

    tokens_NS: Tensor
    mask_NS: Tensor
    hidden_at_W: Tensor
    target_W: Tensor
    place_N: Tensor


class RouterStep(TypedDict):
    """One optimiser step over all parts, and the temperature of its gates."""

    parts: list[RouterPart]
    tau: float
    ids: list[str]
    num_tokens: int


class TrainedGates(nn.Module):
    """W and b of every layer, over standardised states. Begins even: no expert is preferred anywhere."""

    def __init__(self, num_experts: int, states_PLD: Tensor, gates: Gates) -> None:
        super().__init__()
        num_layers, width = states_PLD.shape[1:]
        self._gates: Gates = gates
        self.weight_LED = nn.Parameter(torch.zeros(num_layers, num_experts, width))
        self.bias_LE = nn.Parameter(torch.zeros(num_layers, num_experts))
        spread_LD = states_PLD.std(dim=0, correction=0)
        self.register_buffer("mean_LD", states_PLD.mean(dim=0))
        self.register_buffer("scale_LD", torch.where(spread_LD > 1e-6, 1 / spread_LD.clamp(min=1e-6), 0.0))
        self.mean_LD: Tensor
        self.scale_LD: Tensor

    def forward(self, states_NLD: Tensor, tau: float | None) -> Tensor:
        """[N, L, E] weights; with a temperature through noisy gates (Gumbel-sigmoid), without as they are served."""
        standard_NLD = (states_NLD - self.mean_LD) * self.scale_LD
        logit_NLE = torch.einsum("led,nld->nle", self.weight_LED, standard_NLD) + self.bias_LE
        if self._gates == "softmax":
            return logit_NLE.softmax(dim=2)
        if tau is not None:
            u_NLE = torch.rand_like(logit_NLE).clamp(1e-6, 1 - 1e-6)
            logit_NLE = (logit_NLE + u_NLE.log() - (1 - u_NLE).log()) / tau
        return functional.logsigmoid(logit_NLE).softmax(dim=2)  # g / sum g, without underflow

    def folded(self) -> GateNetwork:
        """The same function of states as they come."""
        weight_LED = self.weight_LED.detach() * self.scale_LD[:, None]
        bias_LE = self.bias_LE.detach() - (weight_LED * self.mean_LD[:, None]).sum(dim=2)
        return GateNetwork(weight_LED.cpu().numpy(), bias_LE.cpu().numpy(), self._gates)


class RouterRunner:
    """Runs rows through base and experts, weighed by the gates. `states_PLD` are those of all rows, by their place."""

    def __init__(
        self, model: PreTrainedModel, network: TrainedGates, board: Board, states_PLD: Tensor, *, pad: int
    ) -> None:
        self._model = model
        self._network = network
        self._board = board
        self._states_PLD = states_PLD
        self._pad = pad

    def step_losses(self, step: RouterStep) -> Iterator[Tensor]:
        """Mean cross entropy over the answers' tokens, a term for each part; gradients reach the gates alone."""
        num_targets = sum(len(part["target_W"]) for part in step["parts"])
        for part in step["parts"]:
            weight_NLE = self._network(self._states_PLD[part["place_N"]], step["tau"])
            yield self._losses(part, weight_NLE).sum() / num_targets

    def step(self, examples: Sequence[Example], places: Sequence[int], tau: float) -> RouterStep:
        """Tensors of some examples, in as few parts as memory allows."""
        rows = in_parts(len(examples), widest=max(len(e.tokens) for e in examples))
        return RouterStep(
            parts=[self.part(examples[some], places[some]) for some in rows],
            tau=tau,
            ids=[e.row.id for e in examples],
            num_tokens=sum(len(e.tokens) for e in examples),
        )

    def part(self, examples: Sequence[Example], places: Sequence[int]) -> RouterPart:
        """Tensors of examples that go through the model together."""
        tokens_NS, mask_NS = pad_rows([e.tokens for e in examples], pad=self._pad, left=False)
        width = tokens_NS.shape[1]
        labels = [
            (row * width + at - 1, e.tokens[at])
            for row, e in enumerate(examples)
            for at in range(e.target_start, len(e.tokens))
        ]
        return RouterPart(
            tokens_NS=tokens_NS,
            mask_NS=mask_NS,
            hidden_at_W=torch.tensor([at for at, _ in labels]),
            target_W=torch.tensor([target for _, target in labels]),
            place_N=torch.tensor(list(places)),
        )

    @torch.no_grad()
    def weights(self, places: Sequence[int]) -> Array:
        """[N, L, E] as they will be served."""
        states_NLD = self._states_PLD[torch.tensor(list(places), device=self._states_PLD.device)]
        weight_NLE: Array = self._network(states_NLD, None).cpu().numpy()
        return weight_NLE

    @torch.no_grad()
    def mean_loss(self, examples: Sequence[Example], weight_NLE: Array) -> float:
        """Over all tokens of the answers, under given weights."""
        losses: list[Tensor] = []
        for some in in_parts(len(examples), widest=max(len(e.tokens) for e in examples)):
            part = on_device(self.part(examples[some], range(len(examples[some]))), self._model.device)
            weights = torch.from_numpy(np.ascontiguousarray(weight_NLE[some])).to(self._model.device)
            losses.append(self._losses(part, weights))
        return float(torch.cat(losses).mean())

    def _losses(self, part: RouterPart, weight_NLE: Tensor) -> Tensor:
        """[W] fp32."""
        self._board.weight_NLE = weight_NLE
        output = self._model.base_model(input_ids=part["tokens_NS"], attention_mask=part["mask_NS"], use_cache=False)
        hidden_WD = output.last_hidden_state.flatten(0, 1)[part["hidden_at_W"]]
        head: nn.Module = self._model.get_output_embeddings()  # type: ignore[no-untyped-call]
        logits_WV = as_the_model_scales(head(hidden_WD).float(), self._model.config)
        return functional.cross_entropy(logits_WV, part["target_W"], reduction="none")


class RouterSteps(Dataset[RouterStep]):
    """The whole run as a pure function of its arguments, so that a resumed one continues exactly."""

    def __init__(
        self,
        examples: Sequence[Example],
        runner: RouterRunner,
        batch_size: int,
        epochs: int,
        seed: int,
        first_tau: float,
        last_tau: float,
    ) -> None:
        self._examples = examples
        self._runner = runner
        self._batches: list[list[int]] = []
        for epoch in range(epochs):
            order = list(range(len(examples)))
            random.Random(f"router {seed} {epoch}").shuffle(order)
            self._batches += [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
        self._taus = np.linspace(first_tau, last_tau, len(self._batches))

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> RouterStep:
        places = self._batches[index]
        return self._runner.step([self._examples[place] for place in places], places, float(self._taus[index]))
