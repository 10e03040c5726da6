"""`relay train see`: options to the recipe of self-selecting experts. Knows no training."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from training.commands.options import (
    Alpha,
    BaseModel,
    BatchSize,
    Cache,
    Data,
    DecisionWeight,
    Description,
    Device,
    Epochs,
    EvalData,
    EvalNegatives,
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
from training.progress import RunObserver
from training.see import SeeOptions, train_see
from training.selection import About, Trained, read_data

_DEFAULTS = SeeOptions()


class Kind(StrEnum):
    ALORA = "alora"
    LORA = "lora"


def see(
    data: Data,
    negatives: Negatives,
    out: Out,
    more: More = None,
    kind: Annotated[Kind, typer.Option(help="alora: active behind the prompt; lora: on all of it.")] = Kind.ALORA,
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
    start: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Begin with this adapter's weights, of the same rank and targets."),
    ] = None,
    average: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="In the end, the weight of what --start began with.")
    ] = _DEFAULTS.average,
    resume: Resume = False,
) -> None:
    """Train an expert that recognises its own queries (SEE)."""
    options = SeeOptions(
        kind="alora" if kind is Kind.ALORA else "lora",
        wake=as_wake(wake),
        rank=rank,
        alpha=alpha,
        targets=names(targets),
        epochs=epochs,
        learning_rate=lr,
        batch_size=batch_size,
        decision_weight=decision_weight,
        max_tokens=max_tokens,
        average=average,
        seed=seed,
    )
    about = About(name=register, description=description, samples=tuple(sample or ()), command=command_line("see"))

    def run(observer: RunObserver) -> Trained:
        rows = read_data(
            data,
            (*negatives, *(more or [])),
            answers=True,
            held_out_own=eval_data,
            held_out_negatives=eval_negatives,
        )
        loaded = load_as_served(base, device, cache)
        return train_see(loaded, rows, options, about, out=out, resume=resume, observer=observer, start=start)

    train_and_register(run, out, register=register, url=url)
