"""Units of the routers we measure against: features of prompts, an expert picked for each, Arrow. Knows no server.

feature    mean over the prompt's tokens of the base's last hidden states, [D]
centroid   the task whose mean feature is nearest (features standardised; grows by a task without training)
classifier logistic regression on the features of all tasks' rows at once: what can be told from them at all
Arrow      token by token and layer by layer, by PEFT's `create_arrow_model` (arXiv 2405.11157)
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import ArrowConfig, create_arrow_model
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from server.model.base import Base
from server.model.chat import ChatFormat
from training.batches import pad_rows
from training.evaluate.adapters import ADAPTER, TunedLora
from training.evaluate.answerers import OutsideTheServer, Picked
from training.evaluate.stream import Sample, Task, digest_samples
from training.evaluate.units import BaseSource, Spent, Unit

# N rows, P prompt tokens, D width.
_FEATURES = "features.npy"
_BATCH_SIZE = 8
_ARROW_TOP_K = 3
Features = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PromptFeatures:
    """Of a task's rows: those to train on, then those held out."""

    task: Task
    parents: tuple[Unit, ...] = ()

    @property
    def name(self) -> str:
        return f"features-{self.task.name}"

    @property
    def samples(self) -> tuple[Sample, ...]:
        return (*self.task.train, *self.task.held_out)

    @property
    def cost(self) -> int:
        return sum(len(sample.prompt) for sample in self.samples) // 12  # forward only: a third of a trained token

    def identity(self) -> Mapping[str, Any]:
        return {"samples": digest_samples(self.samples)}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:  # noqa: ARG002
        np.save(folder / _FEATURES, mean_hidden_states(base.load(), [sample.prompt for sample in self.samples]))


@dataclass(frozen=True, eq=False)
class Picks:
    """For every held-out row of the tasks, the task whose expert is to answer."""

    by: Literal["centroid", "classifier"]
    parents: tuple[PromptFeatures, ...]
    cost: int = 0

    @property
    def name(self) -> str:
        return f"{self.by}-{len(self.parents)}"

    def identity(self) -> Mapping[str, Any]:
        return {"by": self.by, "tasks": [unit.task.name for unit in self.parents]}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:  # noqa: ARG002
        features = [np.load(parent / _FEATURES) for parent in parents]
        tasks = [unit.task for unit in self.parents]
        train = [rows[: len(task.train)] for rows, task in zip(features, tasks, strict=True)]
        asked = [rows[len(task.train) :] for rows, task in zip(features, tasks, strict=True)]
        picked = pick(self.by, train, np.concatenate(asked))
        ids = [sample.id for task in tasks for sample in task.held_out]
        names = {i: tasks[number].name for i, number in zip(ids, picked, strict=True)}
        (folder / Picked.PICKS).write_text(json.dumps(names))


@dataclass(frozen=True, eq=False)
class ArrowAnswers:
    """Greedy answers of PEFT's Arrow model; its settings are PEFT's own, top 3 of the experts for each token."""

    experts: tuple[TunedLora, ...]
    samples: tuple[Sample, ...]
    answer_tokens: int

    @property
    def name(self) -> str:
        return "arrow"

    @property
    def parents(self) -> tuple[Unit, ...]:
        return self.experts

    @property
    def cost(self) -> int:
        return len(self.samples) * 4 * self.answer_tokens

    def identity(self) -> Mapping[str, Any]:
        return {"samples": digest_samples(self.samples), "answer_tokens": self.answer_tokens, "top_k": _ARROW_TOP_K}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:  # noqa: ARG002
        loaded = base.load()
        config = ArrowConfig(top_k=min(_ARROW_TOP_K, len(parents)))
        model = create_arrow_model(loaded.model, [str(parent / ADAPTER) for parent in parents], config)
        model.eval()
        prompts = [sample.prompt for sample in self.samples]
        texts = greedy_texts(loaded, model, prompts, max_new_tokens=self.answer_tokens)
        answers = {sample.id: text for sample, text in zip(self.samples, texts, strict=True)}
        (folder / OutsideTheServer.ANSWERS).write_text(json.dumps(answers, ensure_ascii=False))


def pick(by: Literal["centroid", "classifier"], train: Sequence[Features], asked: Features) -> list[int]:
    """The number of the task of each row of `asked`; `train` has the features of each task's rows."""
    if len(train) == 1:
        return [0] * len(asked)
    labels = [number for number, rows in enumerate(train) for _ in rows]
    fitted = _judge(by).fit(np.concatenate(train), labels)
    return [int(number) for number in fitted.predict(asked)]


def _judge(by: Literal["centroid", "classifier"]) -> Any:
    """scikit-learn's, which has no types."""
    kinds: dict[str, Any] = {"centroid": NearestCentroid, "classifier": partial(LogisticRegression, max_iter=2000)}
    scale, pipeline = cast(Any, StandardScaler), cast(Any, make_pipeline)
    return pipeline(scale(), kinds[by]())


@torch.no_grad()
def mean_hidden_states(base: Base, prompts: Sequence[str]) -> Features:
    """[N, D]: of every prompt, rendered as the server does, the mean over its tokens."""
    rows: dict[int, Tensor] = {}
    for numbers, tokens_NP, mask_NP in _batches(base, prompts, left=False):
        hidden_NPD = base.model.base_model(input_ids=tokens_NP, attention_mask=mask_NP).last_hidden_state.float()
        mean_ND = (hidden_NPD * mask_NP[:, :, None]).sum(dim=1) / mask_NP.sum(dim=1, keepdim=True)
        rows |= dict(zip(numbers, mean_ND.cpu(), strict=True))
    return cast(Features, torch.stack([rows[number] for number in range(len(prompts))]).numpy())


@torch.no_grad()
def greedy_texts(
    base: Base,
    model: torch.nn.Module,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    before_batch: Callable[[Sequence[int]], None] | None = None,
) -> list[str]:
    """What transformers' own generation answers; `model` is the base with something put into it.

    `before_batch` is told whose turn it is: the prompts' numbers, in the batch's order.
    """
    texts: dict[int, str] = {}
    generate = cast(Any, model).generate
    for numbers, tokens_NP, mask_NP in _batches(base, prompts, left=True):
        if before_batch is not None:
            before_batch(numbers)
        answers = generate(
            input_ids=tokens_NP,
            attention_mask=mask_NP,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(base.stop_tokens),
            pad_token_id=base.tokenizer.eos_token_id,
        )[:, tokens_NP.shape[1] :]
        decoded = base.tokenizer.batch_decode(answers, skip_special_tokens=True)
        texts |= dict(zip(numbers, decoded, strict=True))
    return [texts[number] for number in range(len(prompts))]


def _batches(base: Base, prompts: Sequence[str], *, left: bool) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(numbers of the prompts, their tokens, mask), in batches of similar length; padded on that side."""
    chat = ChatFormat(base.tokenizer)
    rows = [chat.render([{"role": "user", "content": prompt}]).tokens for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    for first in range(0, len(order), _BATCH_SIZE):
        numbers = order[first : first + _BATCH_SIZE]
        tokens, mask = pad_rows([rows[n] for n in numbers], pad=base.tokenizer.eos_token_id, left=left)
        yield numbers, tokens.to(base.device), mask.to(base.device)
