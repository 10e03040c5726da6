"""`relay train gate`: options to the recipe of gates for plain LoRAs. Knows no training."""

from pathlib import Path
from typing import Annotated

import typer

from training.commands.options import (
    Alpha,
    BaseModel,
    BatchSize,
    Cache,
    DecisionWeight,
    Description,
    Device,
    Epochs,
    EvalData,
    EvalNegatives,
    Inputs,
    MaxTokens,
    More,
    Negatives,
    Out,
    Rank,
    Rate,
    Register,
    Resume,
    Samples,
    Seed,
    Targets,
    Url,
    WakeAt,
    Waking,
    as_wake,
    names,
)
from training.commands.running import command_line, load_as_served, train_and_register
from training.gate import GateOptions, read_parent, train_gate
from training.progress import RunObserver
from training.selection import About, Trained, read_data

_DEFAULTS = GateOptions()


def gate(
    expert: Annotated[Path, typer.Option(help="Folder of the plain LoRA, as PEFT saved it.")],
    data: Inputs,
    negatives: Negatives,
    out: Out,
    more: More = None,
    wake: Waking = WakeAt.PROMPT,
    register: Register = None,
    url: Url = None,
    base: BaseModel = None,
    device: Device = None,
    cache: Cache = None,
    rank: Rank = _DEFAULTS.rank,
    alpha: Alpha = None,
    targets: Targets = "",
    epochs: Epochs = _DEFAULTS.epochs,
    lr: Rate = _DEFAULTS.learning_rate,
    batch_size: BatchSize = _DEFAULTS.batch_size,
    decision_weight: DecisionWeight = _DEFAULTS.decision_weight,
    max_tokens: MaxTokens = None,
    seed: Seed = _DEFAULTS.seed,
    eval_data: EvalData = None,
    eval_negatives: EvalNegatives = None,
    description: Description = "",
    sample: Samples = None,
    resume: Resume = False,
) -> None:
    """Train a gate, which recognises the queries of a plain LoRA trained elsewhere."""
    options = GateOptions(
        wake=as_wake(wake),
        rank=rank,
        alpha=alpha,
        targets=names(targets),
        epochs=epochs,
        learning_rate=lr,
        batch_size=batch_size,
        decision_weight=decision_weight,
        max_tokens=max_tokens,
        seed=seed,
    )
    about = About(name=register, description=description, samples=tuple(sample or ()), command=command_line("gate"))

    def run(observer: RunObserver) -> Trained:
        parent = read_parent(expert)
        rows = read_data(
            data,
            (*negatives, *(more or [])),
            answers=False,
            held_out_own=eval_data,
            held_out_negatives=eval_negatives,
        )
        loaded = load_as_served(base, device, cache)
        return train_gate(loaded, parent, rows, options, about, out=out, resume=resume, observer=observer)

    train_and_register(run, out, register=register, url=url)
