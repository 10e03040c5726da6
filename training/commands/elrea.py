"""`relay train elrea`: options to the recipe of gradient pools, and a pool to the server. Knows no training."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from expert_store import BASE_ALIAS, check_name
from server.client import add_expert, list_experts, remove_alias, set_alias, show_expert
from server.settings import server_url
from training.commands.options import (
    Alpha,
    BaseModel,
    BatchSize,
    Cache,
    Description,
    Device,
    Epochs,
    MaxTokens,
    Rank,
    Rate,
    Resume,
    Seed,
    Targets,
    Url,
    names,
)
from training.commands.running import clear_errors, command_line, console, load_as_served
from training.data import read_rows
from training.elrea import ElreaOptions, ElreaPool, train_elrea
from training.progress import TerminalProgress
from training.selection import About

_DEFAULTS = ElreaOptions()


class By(StrEnum):
    BIRCH = "birch"
    RANDOM = "random"


def elrea(
    data: Annotated[Path, typer.Option(help="JSON lines {id, input, output}: rows of many kinds, mixed.")],
    out: Annotated[Path, typer.Option(help="Folder for the base adapter, the features and the experts.")],
    clusters: Annotated[int, typer.Option(min=1, max=256, help="How many experts.")] = _DEFAULTS.clusters,
    clustering: Annotated[By, typer.Option(help="birch: by gradient; random: of equal size, to compare.")] = By.BIRCH,
    sample: Annotated[int, typer.Option(min=2, help="Rows that are clustered; others go to the nearest.")] = (
        _DEFAULTS.sample
    ),
    width: Annotated[int, typer.Option(min=1, max=131_072, help="Of the projected gradients.")] = _DEFAULTS.width,
    register: Annotated[
        str | None, typer.Option(metavar="PREFIX", help="Register PREFIX-base, PREFIX-0 ... on a server.")
    ] = None,
    url: Url = None,
    base: BaseModel = None,
    device: Device = None,
    cache: Cache = None,
    rank: Rank = _DEFAULTS.rank,
    alpha: Alpha = None,
    targets: Targets = "",
    epochs: Epochs = _DEFAULTS.epochs,
    expert_epochs: Annotated[int | None, typer.Option(min=1, help="Of each expert (default: --epochs)")] = None,
    lr: Rate = _DEFAULTS.learning_rate,
    batch_size: BatchSize = _DEFAULTS.batch_size,
    max_tokens: MaxTokens = None,
    seed: Seed = _DEFAULTS.seed,
    description: Description = "",
    resume: Resume = False,
) -> None:
    """Train a pool of experts on clusters of mixed rows, for the gradient router (ELREA)."""
    options = ElreaOptions(
        clusters=clusters,
        clustering="random" if clustering is By.RANDOM else "birch",
        sample=sample,
        width=width,
        rank=rank,
        alpha=alpha,
        targets=names(targets),
        epochs=epochs,
        expert_epochs=expert_epochs,
        learning_rate=lr,
        batch_size=batch_size,
        max_tokens=max_tokens,
        seed=seed,
    )
    about = About(name=register, description=description, command=command_line("elrea"))
    with clear_errors(out):
        if register is not None:
            for end in ("base", str(clusters - 1)):
                check_name(f"{register}-{end}")
        rows = read_rows(data, answers=True)
        with TerminalProgress(console) as progress:
            loaded = load_as_served(base, device, cache)
            pool = train_elrea(loaded, rows, options, about, out=out, resume=resume, observer=progress)
        sizes = ", ".join(map(str, pool.sizes))
        console.print(f"{out}: a base adapter and {len(pool.experts)} experts of {sizes} rows", highlight=False)
        if register is not None:
            _register_pool(server_url(url), pool, register)


def _register_pool(url: str, pool: ElreaPool, prefix: str) -> None:
    """Publishes PREFIX-base as the pool's base adapter, then the experts, whose centroids are held against it.

    Another expert that was the base adapter before no longer is. Raises ClientError.
    """
    published = add_expert(url, pool.base, name=f"{prefix}-base", activate=True)
    for name in (expert["name"] for expert in list_experts(url)["experts"]):
        if name != published["name"] and BASE_ALIAS in show_expert(url, name)["aliases"]:
            remove_alias(url, name, BASE_ALIAS)
            console.print(f"{name} no longer is the base adapter of the gradient router", highlight=False)
    set_alias(url, published["name"], BASE_ALIAS, published["version"])
    for number, folder in enumerate(pool.experts):
        expert = add_expert(url, folder, name=f"{prefix}-{number}", activate=True)
        console.print(f"registered {expert['name']}@{expert['version']}", highlight=False)
    console.print(f'ready: ask with "router": "gradient"; base adapter {published["name"]}@{published["version"]}')
