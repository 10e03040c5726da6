"""Walks through a plan of steps with transformers' Trainer, resumably. Knows no recipe and no data files."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from training.batches import Step
from training.errors import Diverged
from training.progress import RunObserver


@dataclass(frozen=True)
class LoopOptions:
    """The learning rate rises over the first `warmup` share of the steps, then falls as a cosine."""

    learning_rate: float
    warmup: float
    seed: int
    save_every: int

    @classmethod
    def of(cls, told: "Told", num_steps: int) -> "LoopOptions":
        """As a recipe was told, with a checkpoint after each eighth."""
        return cls(told.learning_rate, told.warmup, told.seed, save_every=max(10, num_steps // 8))


class Told(Protocol):
    """What every recipe's options say of its steps."""

    @property
    def learning_rate(self) -> float: ...

    @property
    def warmup(self) -> float: ...

    @property
    def seed(self) -> int: ...


class StepLoss(Protocol):
    """What is to become small; a `SuffixRunner` for adapters, or one with a penalty.

    The loss of a step is the sum of its terms. Each is computed when the one before has gone backward, so that only one
    is in memory.
    """

    def step_losses(self, step: Any) -> Iterator[Tensor]: ...


def run_plan(
    model: nn.Module,
    runner: StepLoss,
    steps: Dataset[Any],
    options: LoopOptions,
    *,
    checkpoints: Path,
    resume: bool,
    observer: RunObserver,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Trains `model`, which `runner` runs, in place; checkpoints hold weights, optimiser, schedule and random states.

    Steps come from the plan in order, so a resumed run skips those made and continues as if it had never stopped.
    `after_step` is told how many steps were made, before a checkpoint is written, and may change the weights. Raises
    Diverged, before a bad gradient can reach the weights.
    """
    trainer = _PlanTrainer(model, runner, steps, options, checkpoints, observer)
    if after_step is not None:
        trainer.add_callback(_AfterStep(after_step))
    last = _last_complete(checkpoints) if resume else None
    trainer.train(resume_from_checkpoint=None if last is None else str(last))


def _last_complete(checkpoints: Path) -> Path | None:
    """The newest checkpoint that was written to its end; what came after it, cut off while written, is removed."""
    for folder in sorted(checkpoints.glob("checkpoint-*"), key=lambda f: int(f.name.rpartition("-")[2]), reverse=True):
        if _is_complete(folder):
            return folder
        shutil.rmtree(folder)
    return None


def _is_complete(checkpoint: Path) -> bool:
    """Whether its state can be read, which the Trainer writes last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


class _PlanTrainer(Trainer):
    """One item of the data set is one whole step."""

    def __init__(
        self,
        model: nn.Module,
        runner: StepLoss,
        steps: Dataset[Any],
        options: LoopOptions,
        checkpoints: Path,
        observer: RunObserver,
    ) -> None:
        arguments = TrainingArguments(
            output_dir=str(checkpoints),
            per_device_train_batch_size=1,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=round(options.warmup * len(cast(Sized, steps))),
            save_strategy="steps",
            save_steps=options.save_every,
            save_total_limit=2,
            seed=options.seed,
            use_cpu=next(model.parameters()).device.type == "cpu",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # one step at a time, also where there are more
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=steps,
            data_collator=_only_item,
            callbacks=[_Announcement(observer), _FiniteGradients()],
        )
        self.remove_callback(PrinterCallback)
        self._runner = runner
        self._observer = observer
        self._frozen = [p for p in model.parameters() if not p.requires_grad]

    @override
    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Of what was to be trained when the run began: loading a checkpoint makes the whole adapter trainable."""
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        return super().create_optimizer(model)

    @override
    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Gradients of the step's loss into the parameters; returns the loss."""
        model.train()
        step = cast(Step, self._prepare_inputs(inputs))
        loss = torch.zeros((), device=self.args.device)
        for term in self._runner.step_losses(step):
            loss += term.detach()
            if not math.isfinite(loss.item()):
                where = f"rows {', '.join(step['ids'])}"
                raise Diverged(_divergence(f"the loss became {loss.item()}", self.state, where))
            self.accelerator.backward(term)  # type: ignore[no-untyped-call]
        self._observer.step(loss=loss.item(), tokens=step["num_tokens"])
        return loss

    @override
    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the Trainer's estimate knows nothing of frozen prompts."""
        return 0


class _Announcement(TrainerCallback):
    def __init__(self, observer: RunObserver) -> None:
        self._observer = observer

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._observer.begin(done=state.global_step, total=state.max_steps)


class _AfterStep(TrainerCallback):
    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._tell(state.global_step)


class _FiniteGradients(TrainerCallback):
    """Stops before the optimiser spreads a bad gradient, so that the last checkpoint stays good."""

    @override
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for name, parameter in kwargs["model"].named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise Diverged(_divergence("a gradient stopped being finite", state, name))


def _divergence(what: str, state: TrainerState, where: str) -> str:
    return (
        f"{what} in step {state.global_step + 1} of {state.max_steps} ({where}): the last checkpoint is kept; "
        "resume will meet the same step again, so train anew with a lower --lr"
    )


def _only_item(items: list[Any]) -> dict[str, Any]:
    (step,) = items
    return cast(dict[str, Any], step)
