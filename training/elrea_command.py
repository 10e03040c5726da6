"""`relay train elrea`: options to recipe, and a pool to the server. Knows no training."""

from pathlib import Path

import typer
from rich.console import Console

from expert_store import BASE_ALIAS, StoreError, check_name
from server.client import add_expert, list_experts, remove_alias, set_alias, show_expert
from server.errors import RelayError
from server.model.base import load_base
from server.settings import server_url
from training.data import read_rows
from training.elrea import ElreaOptions, ElreaPool, train_elrea
from training.errors import TrainingError
from training.progress import TerminalProgress
from training.selection import About


def run_elrea(
    options: ElreaOptions,
    about: About,
    *,
    data: Path,
    out: Path,
    base: str,
    device: str,
    cache: Path,
    resume: bool,
    url: str | None,
    console: Console,
) -> None:
    """Trains, reports, registers where `about` names a prefix. Exits with 1 for a mistake, with 130 if interrupted."""
    try:
        if about.name is not None:
            for end in ("base", str(options.clusters - 1)):
                check_name(f"{about.name}-{end}")
        rows = read_rows(data, answers=True)
        with TerminalProgress(console) as progress:
            loaded = load_base(base, device=device, cache=cache)
            pool = train_elrea(loaded, rows, options, about, out=out, resume=resume, observer=progress)
        sizes = ", ".join(map(str, pool.sizes))
        console.print(f"{out}: a base adapter and {len(pool.experts)} experts of {sizes} rows", highlight=False)
        if about.name is not None:
            register_pool(server_url(url), pool, about.name, console)
    except (TrainingError, RelayError, StoreError) as error:
        console.print(error.message, style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        console.print(f"interrupted: the same command with --resume goes on from what is done in {out}")
        raise typer.Exit(130) from error


def register_pool(url: str, pool: ElreaPool, prefix: str, console: Console) -> None:
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
