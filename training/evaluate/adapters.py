"""Units that train one adapter: a SEE expert, a gate, or a LoRA fresh, continued, held back by a penalty or averaged.

Knows no methods and no server."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import set_seed

from expert_store import MANIFEST_FILE, Indicators
from server.model.base import Base
from server.model.chat import ChatFormat
from training.averaging import Averaging, freeze_down_projections, unfreeze_adapter
from training.data import DataFile, Example
from training.evaluate.budget import Budget
from training.evaluate.stream import Sample, digest_samples
from training.evaluate.units import BaseSource, Spent, Unit
from training.gate import GateOptions, read_parent, train_gate
from training.loop import StepLoss
from training.output import CHECKPOINTS, remove_checkpoints, save_adapter
from training.penalty import Penalised, fisher
from training.see import SeeOptions, train_see
from training.selection import About, SelectionData, Wake, read_data, save_profile
from training.selection import encode as encode_rows
from training.suffix import SuffixRunner
from training.tuning import AnswerFormat, continued_adapter, fresh_adapter, plan, tune

ADAPTER = "adapter"
_FISHER = "fisher.safetensors"


@dataclass(frozen=True, eq=False)
class SeeExpert:
    """An expert that accepts and rejects by itself (training/see.py)."""

    task: str
    own: tuple[Sample, ...]
    negatives: tuple[Sample, ...]
    kind: Literal["alora", "lora"]
    budget: Budget
    seed: int
    wake: Wake = "prompt"
    parents: tuple[Unit, ...] = ()

    @property
    def name(self) -> str:
        return f"see-{'late' if self.wake == 'indicator' else self.kind}-{self.task}"

    @property
    def cost(self) -> int:
        return training_cost((*self.own, *self.negatives), self.budget)

    def identity(self) -> Mapping[str, Any]:
        data = {"own": digest_samples(self.own), "negatives": digest_samples(self.negatives)}
        late = {"wake": self.wake} if self.wake != "prompt" else {}
        return {**data, **trained_by(self.budget), "kind": self.kind, "seed": self.seed, **late}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:  # noqa: ARG002
        out = folder / ADAPTER
        if (out / MANIFEST_FILE).exists():
            return
        data = _selection_data(folder, self.own, self.negatives, answers=True)
        resume = (out / CHECKPOINTS).exists()
        train_see(base.load(), data, self.options, About(), out=out, resume=resume, observer=spent)

    @property
    def options(self) -> SeeOptions:
        tuning = self.budget.tuning(self.seed)
        return SeeOptions(
            kind=self.kind,
            wake=self.wake,
            rank=self.budget.rank,
            epochs=tuning.epochs,
            learning_rate=tuning.learning_rate,
            batch_size=tuning.batch_size,
            seed=tuning.seed,
        )


@dataclass(frozen=True, eq=False)
class GatedLora:
    """A plain LoRA trained by itself, with a gate that accepts and rejects for it (training/gate.py)."""

    task: str
    lora: "TunedLora"
    own: tuple[Sample, ...]
    negatives: tuple[Sample, ...]
    budget: Budget
    seed: int

    @property
    def name(self) -> str:
        return f"gated-{self.task}"

    @property
    def parents(self) -> "tuple[TunedLora, ...]":
        return (self.lora,)

    @property
    def cost(self) -> int:
        return training_cost((*self.own, *self.negatives), self.budget)

    def identity(self) -> Mapping[str, Any]:
        data = {"own": digest_samples(self.own), "negatives": digest_samples(self.negatives)}
        return {**data, **trained_by(self.budget), "rank": GateOptions().rank, "seed": self.seed}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:
        out = folder / ADAPTER
        if (out / MANIFEST_FILE).exists():
            return
        data = _selection_data(folder, self.own, self.negatives, answers=False)
        parent = read_parent(parents[0] / ADAPTER)
        resume = (out / CHECKPOINTS).exists()
        train_gate(base.load(), parent, data, self.options, About(), out=out, resume=resume, observer=spent)

    @property
    def options(self) -> GateOptions:
        tuning = self.budget.tuning(self.seed)
        return GateOptions(
            epochs=tuning.epochs,
            learning_rate=tuning.learning_rate,
            batch_size=tuning.batch_size,
            seed=tuning.seed,
        )


@dataclass(frozen=True, eq=False)
class Guarded:
    """An expert with the guard that its recipe leaves today; it may have been trained before there were any."""

    expert: SeeExpert | GatedLora
    cost: int = 0

    @property
    def task(self) -> str:
        return self.expert.task

    @property
    def name(self) -> str:
        return f"guarded-{self.expert.name}"

    @property
    def parents(self) -> tuple[Unit, ...]:
        return (self.expert,)

    def identity(self) -> Mapping[str, Any]:
        return {}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:  # noqa: ARG002
        shutil.copytree(parents[0] / ADAPTER, folder / ADAPTER, dirs_exist_ok=True)
        loaded = base.load()
        chat = ChatFormat(loaded.tokenizer)
        answers = isinstance(self.expert, SeeExpert)
        data = _selection_data(folder, self.expert.own, self.expert.negatives, answers=answers)
        examples = encode_rows(loaded, chat, chat.indicator_tokens(Indicators()), data, self.expert.options)
        save_profile(loaded, chat, data, examples, folder / ADAPTER)


@dataclass(frozen=True)
class Averaged:
    """SFA's averaging; A is frozen meanwhile."""

    share: float
    beta: float


@dataclass(frozen=True)
class L2:
    strength: float


@dataclass(frozen=True, eq=False)
class Ewc:
    """`importance` is the Fisher unit of what was learned before."""

    strength: float
    importance: "FisherOf"


@dataclass(frozen=True, eq=False)
class TunedLora:
    """A plain LoRA, supervised on answers: fresh or from where another ended, and perhaps held back."""

    label: str
    rows: tuple[Sample, ...]
    budget: Budget
    seed: int
    start: "TunedLora | None" = None
    hold: Averaged | L2 | Ewc | None = None

    @property
    def name(self) -> str:
        return f"lora-{self.label}"

    @property
    def parents(self) -> tuple[Unit, ...]:
        importance = (self.hold.importance,) if isinstance(self.hold, Ewc) else ()
        return (*(() if self.start is None else (self.start,)), *importance)

    @property
    def cost(self) -> int:
        return training_cost(self.rows, self.budget)

    def identity(self) -> Mapping[str, Any]:
        held: dict[str, Any] = {"hold": type(self.hold).__name__}
        if isinstance(self.hold, Averaged):
            held |= asdict(self.hold)
        elif self.hold is not None:
            held["strength"] = self.hold.strength
        return {"rows": digest_samples(self.rows), **trained_by(self.budget), "seed": self.seed, **held}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:
        loaded = base.load()
        set_seed(self.seed)
        if self.start is None:
            model = fresh_adapter(loaded, rank=self.budget.rank, alpha=2 * self.budget.rank)
        else:
            model = continued_adapter(loaded, parents[0] / ADAPTER)
        options = self.budget.tuning(self.seed)
        steps = plan(encode(loaded, self.rows), options, pad=loaded.tokenizer.eos_token_id)
        checkpoints = folder / CHECKPOINTS
        averaging = None
        if isinstance(self.hold, Averaged):
            freeze_down_projections(model)
            averaging = Averaging(model, num_steps=len(steps), share=self.hold.share, beta=self.hold.beta)
        tune(
            model,
            self._loss(model, parents),
            steps,
            options,
            checkpoints=checkpoints,
            resume=checkpoints.exists(),
            observer=spent,
            after_step=averaging.after_step if averaging else None,
        )
        unfreeze_adapter(model)
        (folder / ADAPTER).mkdir(exist_ok=True)
        save_adapter(model, loaded, folder / ADAPTER, invocation_tokens=None)
        remove_checkpoints(checkpoints)

    def _loss(self, model: PeftModel, parents: Sequence[Path]) -> StepLoss:
        runner = SuffixRunner(model)
        if isinstance(self.hold, L2):
            return Penalised(runner, model, strength=self.hold.strength)
        if isinstance(self.hold, Ewc):
            importance = load_file(parents[-1] / _FISHER)
            return Penalised(runner, model, strength=self.hold.strength, importance=importance)
        return runner


@dataclass(frozen=True, eq=False)
class FisherOf:
    """How much each weight of an adapter matters for the rows it was trained on, on top of what mattered before."""

    adapter: TunedLora
    rows: tuple[Sample, ...]
    before: "FisherOf | None" = None

    @property
    def name(self) -> str:
        return f"fisher-{self.adapter.label}"

    @property
    def parents(self) -> tuple[Unit, ...]:
        return (self.adapter, *(() if self.before is None else (self.before,)))

    @property
    def cost(self) -> int:
        return training_cost(self.rows, self.adapter.budget) // self.adapter.budget.epochs

    def identity(self) -> Mapping[str, Any]:
        return {"rows": digest_samples(self.rows)}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:  # noqa: ARG002
        loaded = base.load()
        model = continued_adapter(loaded, parents[0] / ADAPTER)
        model.eval()
        found = fisher(SuffixRunner(model), model, encode(loaded, self.rows), pad=loaded.tokenizer.eos_token_id)
        if self.before is not None:
            earlier = load_file(parents[1] / _FISHER)
            found = {name: value + earlier[name].to(value.device) for name, value in found.items()}
        save_file({name: value.contiguous() for name, value in found.items()}, folder / _FISHER)


def encode(base: Base, samples: Sequence[Sample]) -> list[Example]:
    """Answers as plain experts give them. Raises InvalidData for rows over the base's context."""
    answers = AnswerFormat(ChatFormat(base.tokenizer), base.tokenizer.eos_token_id)
    rows = tuple(sample.as_row(line) for line, sample in enumerate(samples, start=1))
    return answers.encode(DataFile(Path("the stream"), rows), max_tokens=base.max_context)


def trained_by(budget: Budget) -> dict[str, Any]:
    """What of the budget decides how an adapter turns out; rows stand apart."""
    return {"rank": budget.rank} | {k: v for k, v in asdict(budget.tuning(0)).items() if k != "seed"}


def training_cost(samples: Sequence[Sample], budget: Budget) -> int:
    return budget.epochs * sum(len(sample.prompt) + len(sample.output) for sample in samples) // 4


def _selection_data(
    folder: Path, own: Sequence[Sample], negatives: Sequence[Sample], *, answers: bool
) -> SelectionData:
    files = write_rows(folder / "own.jsonl", own), write_rows(folder / "negatives.jsonl", negatives)
    return read_data(files[0], files[1:], answers=answers, held_out_own=None, held_out_negatives=None)


def write_rows(path: Path, samples: Sequence[Sample]) -> Path:
    rows = [{"id": s.id, "input": s.prompt, "output": s.output} for s in samples]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
