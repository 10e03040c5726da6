"""Supervised fine-tuning of one adapter on answers, fresh or continued. Knows no recipe, no manifest and no files.

row  x -> answer, end of sequence          loss on the answer's tokens alone, each weighing the same
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from expert_store import WEIGHTS_FILE
from server.model.base import Base
from server.model.chat import ChatFormat, IndicatorTokens, activation_start
from training.batches import Collator, Step, StepDataset, StepRows, plan_steps
from training.data import DataFile, Example, Row
from training.errors import InvalidData, InvalidRun
from training.loop import LoopOptions, StepLoss, run_plan
from training.progress import RunObserver


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """What any such run can be told."""

    epochs: int = 1
    learning_rate: float = 1e-3
    warmup: float = 0.05
    batch_size: int = 8
    seed: int = 0


@dataclass(frozen=True)
class AnswerFormat:
    """How rows become tokens: as the server will render them, for the expert they are meant for.

    With `indicators` a row with an answer is accepted first and one without is rejected (SEE). `invocation` wakes an
    activated expert up; what stands before it is left to the base.
    """

    chat: ChatFormat
    eos: int
    indicators: IndicatorTokens | None = None
    invocation: tuple[int, ...] | None = None

    def encode(self, file: DataFile, *, max_tokens: int) -> list[Example]:
        """Raises InvalidData naming every row that is too long."""
        examples = [self.example(row) for row in file.rows]
        problems: list[tuple[int | None, str]] = [
            (e.row.line, f"{len(e.tokens)} tokens, but at most {max_tokens} fit: shorten it or raise --max-tokens")
            for e in examples
            if len(e.tokens) > max_tokens
        ]
        if problems:
            raise InvalidData(file.path, problems)
        return examples

    def example(self, row: Row) -> Example:
        prompt = self.chat.render([{"role": "user", "content": row.input}]).tokens
        target = (*self._target(row), self.eos)
        frozen = 0 if self.invocation is None else self._start(prompt)
        start = max(len(prompt), frozen + len(self.invocation or ()))
        return Example(
            row=row,
            tokens=(*prompt, *target),
            frozen_length=frozen,
            target_start=start,
            decision=start,
            accepts=row.output is not None,
        )

    def _target(self, row: Row) -> tuple[int, ...]:
        if self.indicators is None:
            return self.chat.encode(str(row.output))
        if row.output is None:
            return self.indicators.reject
        return (*self.indicators.accept, *self.chat.encode(f" {row.output}"))

    def _start(self, prompt: Sequence[int]) -> int:
        """Where the expert wakes up. Raises InvalidRun where it would not: the row would train nothing."""
        shared = () if self.indicators is None else self.indicators.shared
        start = activation_start((*prompt, *shared), self.invocation or ())
        if start is None:
            raise InvalidRun(
                "the expert's invocation tokens do not occur in the base's chat template: give its own base"
            )
        return start


@dataclass(frozen=True)
class AnswerCollator:
    """Pads the rows of a step; their loss is the mean over all labels."""

    pad: int
    activated: bool = False

    def collate(self, rows: StepRows) -> Step:
        examples = (*rows.accepted, *rows.rejected)
        weight = 1.0 / sum(len(e.tokens) - e.target_start for e in examples)
        collator = Collator(activated=self.activated, decision_weight=1.0, pad=self.pad)
        return Step(
            parts=collator.parts(examples, decision=weight, other=weight),
            ids=[e.row.id for e in examples],
            num_tokens=sum(len(e.tokens) for e in examples),
        )


def fresh_adapter(base: Base, *, rank: int, alpha: float, targets: Sequence[str] = ()) -> PeftModel:
    """The base with a new plain LoRA, on all linear layers unless `targets` names some. `base.model` is consumed."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=cast(int, alpha),  # PEFT takes floats as well
        target_modules=list(targets) or "all-linear",
    )
    return _adapted(base, config)


def continued_adapter(base: Base, folder: Path) -> PeftModel:
    """The base with the adapter of a folder, to go on from. `base.model` is consumed.

    An activated one comes as a plain one, since it is trained on suffixes alone, where it is active throughout.
    """
    config = cast(LoraConfig, LoraConfig.from_pretrained(str(folder)))
    config.alora_invocation_tokens = None
    config.inference_mode = False
    model = _adapted(base, config)
    set_peft_model_state_dict(model, load_file(folder / WEIGHTS_FILE))
    return model


def tune(
    model: PeftModel,
    loss: StepLoss,
    steps: StepDataset,
    options: TuningOptions,
    *,
    checkpoints: Path,
    resume: bool,
    observer: RunObserver,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Walks through the steps; `model` is trained in place. Raises Diverged."""
    run_plan(
        model,
        loss,
        steps,
        LoopOptions.of(options, len(steps)),
        checkpoints=checkpoints,
        resume=resume,
        observer=observer,
        after_step=after_step,
    )


def plan(examples: Sequence[Example], options: TuningOptions, *, pad: int, activated: bool = False) -> StepDataset:
    """Every step of the run, a pure function of its arguments."""
    answered = [e for e in examples if e.accepts]
    rejected = [e for e in examples if not e.accepts]
    steps = plan_steps(answered, rejected, batch_size=options.batch_size, epochs=options.epochs, seed=options.seed)
    return StepDataset(steps, AnswerCollator(pad, activated).collate)


def _adapted(base: Base, config: LoraConfig) -> PeftModel:
    if base.device.type == "cpu":
        base.model.set_attn_implementation("eager")  # its backward pass takes two thirds of sdpa's time here
    model: PeftModel = get_peft_model(base.model, config)
    return model
