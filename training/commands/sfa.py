"""`relay train sfa`: options to the recipe of next versions. Knows no training."""

from pathlib import Path
from typing import Annotated

import typer

from server.settings import load_settings
from training.commands.options import (
    BaseModel,
    BatchSize,
    Cache,
    Device,
    Epochs,
    MaxTokens,
    Out,
    Rate,
    Resume,
    Seed,
    Url,
)
from training.commands.running import command_line, load_as_served, train_and_register
from training.data import read_rows, refuse_contradictions
from training.progress import RunObserver
from training.sfa import NextVersion, SfaOptions, find_parent, train_sfa

_DEFAULTS = SfaOptions()


def sfa(
    expert: Annotated[str, typer.Option(help="NAME, NAME@VERSION or NAME@ALIAS of the store: the parent.")],
    data: Annotated[list[Path], typer.Option(help="JSON lines {id, input, output}: new rows; repeatable, in turn.")],
    out: Out,
    p: Annotated[float, typer.Option("--p", help="Average after each such share of a data set's steps.")] = (
        _DEFAULTS.share
    ),
    beta: Annotated[float, typer.Option(help="Weight of what the data set began with.")] = _DEFAULTS.beta,
    negatives: Annotated[
        list[Path] | None, typer.Option(help="JSON lines {id, input}: what to go on rejecting; repeatable.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(envvar="RELAY_STORE", help="The expert store (default: the server's)")
    ] = None,
    register: Annotated[bool, typer.Option("--register", help="Publish it on a server as the next version.")] = False,
    url: Url = None,
    base: BaseModel = None,
    device: Device = None,
    cache: Cache = None,
    epochs: Epochs = _DEFAULTS.epochs,
    lr: Rate = _DEFAULTS.learning_rate,
    batch_size: BatchSize = _DEFAULTS.batch_size,
    max_tokens: MaxTokens = None,
    seed: Seed = _DEFAULTS.seed,
    resume: Resume = False,
) -> None:
    """Train an expert's next version from new rows, averaging as it goes (SFA)."""

    def run(observer: RunObserver) -> NextVersion:
        options = SfaOptions(
            share=p,
            beta=beta,
            epochs=epochs,
            learning_rate=lr,
            batch_size=batch_size,
            max_tokens=max_tokens,
            seed=seed,
        )
        parent = find_parent(store or load_settings({}).store, expert)
        files = [read_rows(path, answers=True) for path in data]
        rejected = [read_rows(path, answers=False) for path in negatives or ()]
        for file in files:
            refuse_contradictions(file, rejected)
        loaded = load_as_served(base, device, cache)
        return train_sfa(
            loaded,
            parent,
            files,
            options,
            negatives=rejected,
            command=command_line("sfa"),
            out=out,
            resume=resume,
            observer=observer,
        )

    name = expert.partition("@")[0]
    train_and_register(run, out, register=name if register else None, url=url)
