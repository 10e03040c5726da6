"""Units of L2R: a router trained over the LoRAs of the tasks, and answers through merged factors. Knows no server.

merge   B = sum of g_t s_t B_t,  A = sum of g_t A_t,  y = W x + B A x        (each layer with its own g, one pass)
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expert_store import (
    MANIFEST_FILE,
    ROUTER_FILE,
    ExpertStore,
    ExpertVersion,
    Gates,
    ManifestDraft,
    RouterDraft,
    copy_adapter,
    inspect_adapter,
)
from server.model.base import Base
from server.model.chat import ChatFormat
from server.model.gates import GateNetwork, read_network
from server.model.states import mean_states
from training.composed import Board, MergedLinear, compose
from training.evaluate.adapters import ADAPTER, TunedLora, training_cost
from training.evaluate.answerers import OutsideTheServer
from training.evaluate.routers import greedy_texts
from training.evaluate.stream import Sample, digest_samples
from training.evaluate.units import BaseSource, Spent, Unit
from training.output import CHECKPOINTS
from training.router import RouterOptions, read_router_data, train_router

ROUTER = "router"
_MAX_RANK = 1 << 16  # how much is served is the server's to say


@dataclass(frozen=True, eq=False)
class LearnedGates:
    """A router over the experts, trained on a memory of their tasks' rows (training/router.py)."""

    experts: tuple[TunedLora, ...]
    memory: tuple[Sample, ...]
    gates: Gates
    seed: int

    @property
    def name(self) -> str:
        return f"router-{self.gates}"

    @property
    def parents(self) -> tuple[Unit, ...]:
        return self.experts

    @property
    def options(self) -> RouterOptions:
        return RouterOptions(gates=self.gates, seed=self.seed)

    @property
    def cost(self) -> int:
        budget = self.experts[0].budget
        return training_cost(self.memory, budget) // budget.epochs * self.options.epochs

    def identity(self) -> Mapping[str, Any]:
        tasks = [sample.task for sample in self.memory]
        return {"memory": digest_samples(self.memory), "tasks": tasks, "options": asdict(self.options)}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:
        out = folder / ROUTER
        if (out / MANIFEST_FILE).exists():
            return
        loaded = base.load()
        versions = _stored(loaded, [parent / ADAPTER for parent in parents], folder / "store")
        name_of = {expert.label: version.name for expert, version in zip(self.experts, versions, strict=True)}
        rows = [
            {"id": sample.id, "expert": name_of[sample.task], "input": sample.prompt, "output": sample.output}
            for sample in self.memory
        ]
        memory = folder / "memory.jsonl"
        memory.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        data = read_router_data(versions, memory, None)
        resume = (out / CHECKPOINTS).exists()
        train_router(loaded, data, self.options, out=out, resume=resume, observer=spent)
        shutil.rmtree(folder / "store")


@dataclass(frozen=True, eq=False)
class MergedAnswers:
    """Greedy answers of the base with the experts' factors averaged for each prompt, A and B apart."""

    router: LearnedGates
    samples: tuple[Sample, ...]
    answer_tokens: int

    @property
    def name(self) -> str:
        return "l2r-merge"

    @property
    def parents(self) -> tuple[Unit, ...]:
        return (self.router, *self.router.experts)

    @property
    def cost(self) -> int:
        return len(self.samples) * 4 * self.answer_tokens

    def identity(self) -> Mapping[str, Any]:
        return {"samples": digest_samples(self.samples), "answer_tokens": self.answer_tokens}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:  # noqa: ARG002
        loaded = base.load()
        prompts = [sample.prompt for sample in self.samples]
        adapters = [parent / ADAPTER for parent in parents[1:]]
        texts = merged_texts(loaded, adapters, read_gates(parents[0]), prompts, max_new_tokens=self.answer_tokens)
        answers = {sample.id: text for sample, text in zip(self.samples, texts, strict=True)}
        (folder / OutsideTheServer.ANSWERS).write_text(json.dumps(answers, ensure_ascii=False))


def read_draft(folder: Path) -> RouterDraft:
    """What the recipe says of the router in a unit's folder."""
    return RouterDraft.model_validate_json((folder / ROUTER / MANIFEST_FILE).read_text())


def read_gates(folder: Path) -> GateNetwork:
    """The gates in a unit's folder, as the server reads them."""
    draft = read_draft(folder)
    shape = (draft.num_layers, len(draft.experts), draft.width)
    return read_network(folder / ROUTER / ROUTER_FILE, gates=draft.gates, shape=shape)


def merged_texts(
    base: Base, adapters: Sequence[Path], gates: GateNetwork, prompts: Sequence[str], *, max_new_tokens: int
) -> list[str]:
    """What the base answers with these adapters' factors averaged by the gates. `base.model` is consumed."""
    chat = ChatFormat(base.tokenizer)
    tokens = [chat.render([{"role": "user", "content": prompt}]).tokens for prompt in prompts]
    states_PLD = mean_states(base.model, tokens).cpu().numpy()
    weight_PLE = torch.from_numpy(np.stack([gates.weights(states_LD) for states_LD in states_PLD])).to(base.device)
    board = Board()
    compose(base.model, adapters, board, MergedLinear)

    def weigh(numbers: Sequence[int]) -> None:
        board.weight_NLE = weight_PLE[list(numbers)]

    return greedy_texts(base, base.model, prompts, max_new_tokens=max_new_tokens, before_batch=weigh)


def _stored(base: Base, adapters: Sequence[Path], root: Path) -> tuple[ExpertVersion, ...]:
    """The adapters as versions of a store, which is what the recipe trains over; what is in it already is taken."""
    store = ExpertStore.open(root)
    for number, adapter in enumerate(adapters):
        if f"expert-{number}" in store.catalog.experts:
            continue
        with store.stage() as staged:
            copy_adapter(adapter, staged.folder)
            info = inspect_adapter(staged.folder, base.spec, max_rank=_MAX_RANK)
            store.publish(staged, ManifestDraft(), info, name=f"expert-{number}")
    return tuple(store.catalog.experts[f"expert-{number}"].versions[1] for number in range(len(adapters)))
