"""`relay train router`: options to the recipe of the learned router, and it into the store. Knows no training."""

import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from expert_store import ROUTER_FILE, ExpertStore
from training.commands.options import (
    BaseModel,
    BatchSize,
    Cache,
    Device,
    Epochs,
    MaxTokens,
    Rate,
    Resume,
    Seed,
)
from training.commands.running import clear_errors, command_line, console, existing_store, load_as_served
from training.progress import TerminalProgress
from training.router import RouterOptions, TrainedRouter, choose_experts, read_router_data, train_router

_DEFAULTS = RouterOptions()


class GateKind(StrEnum):
    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"


def router(
    memory: Annotated[Path, typer.Option(help="JSON lines {id, expert, input, output}: rows of every expert's task.")],
    out: Annotated[Path, typer.Option(help="Folder for the router and its manifest.")],
    store: Annotated[Path | None, typer.Option(envvar="RELAY_STORE", help="The store that holds the experts.")] = None,
    expert: Annotated[
        list[str] | None, typer.Option(metavar="NAME[@V]", help="Route to these; repeatable (default: all live LoRAs)")
    ] = None,
    register: Annotated[bool, typer.Option(help="Put it into the store; servers use it at once.")] = False,
    gates: Annotated[GateKind, typer.Option(help="sigmoid: each for itself; softmax: one against another.")] = (
        GateKind.SIGMOID
    ),
    base: BaseModel = None,
    device: Device = None,
    cache: Cache = None,
    epochs: Epochs = _DEFAULTS.epochs,
    lr: Rate = _DEFAULTS.learning_rate,
    batch_size: BatchSize = _DEFAULTS.batch_size,
    max_tokens: MaxTokens = None,
    seed: Seed = _DEFAULTS.seed,
    eval_memory: Annotated[Path | None, typer.Option(help="Held-out rows (default: 10% of --memory)")] = None,
    resume: Resume = False,
) -> None:
    """Train the learned router over plain LoRAs of a store (L2R)."""
    options = RouterOptions(
        gates="sigmoid" if gates is GateKind.SIGMOID else "softmax",
        epochs=epochs,
        learning_rate=lr,
        batch_size=batch_size,
        max_tokens=max_tokens,
        seed=seed,
    )
    with clear_errors(out):
        opened = ExpertStore.open(existing_store(store))
        data = read_router_data(choose_experts(opened.catalog, expert or ()), memory, eval_memory)
        with TerminalProgress(console) as progress:
            loaded = load_as_served(base, device, cache)
            trained = train_router(
                loaded, data, options, command=command_line("router"), out=out, resume=resume, observer=progress
            )
        _report(trained)
        if register:
            with opened.stage() as staged:
                shutil.copyfile(out / ROUTER_FILE, staged.folder / ROUTER_FILE)
                published = opened.publish_router(staged, trained.draft)
            console.print(f"registered as version {published.version}", highlight=False)


def _report(trained: TrainedRouter) -> None:
    quality = trained.draft.quality
    console.print(
        f"{trained.folder}: {len(trained.draft.experts)} experts; loss on {quality['held_out']:.0f} held-out rows "
        f"{quality['loss']:.4f}, evenly mixed {quality['loss_uniform']:.4f}, the right expert alone "
        f"{quality['loss_oracle']:.4f}; it leads {quality['leader_accuracy']:.1%} of the time",
        highlight=False,
    )
