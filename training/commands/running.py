"""What all commands of `relay train` do alike: the server's settings, errors to messages, one expert to the server.

Knows no recipe.
"""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console

from expert_store import StoreError, check_name
from server.client import add_expert
from server.errors import RelayError
from server.model.base import Base, load_base
from server.settings import load_settings, read_chat_template, server_url
from training.errors import InvalidRun, TrainingError
from training.progress import RunObserver, TerminalProgress
from training.selection import Trained
from training.sfa import NextVersion

console = Console(stderr=True)
_COMMAND_CHARS = 4000  # what a manifest holds


def default_cache() -> Path:
    """Where the server keeps a converted base too. Raises SettingsError."""
    return load_settings({}).cache


def existing_store(given: Path | None) -> Path:
    """The experts' store, by default the server's. Raises SettingsError; InvalidRun, as opening one would make it."""
    store = given or load_settings({}).store
    if not store.is_dir():
        raise InvalidRun(f"{store} is not there: name the folder of the experts' store with --store or RELAY_STORE")
    return store


def load_as_served(base: str | None, device: str | None, cache: Path | None) -> Base:
    """What is not given is as the server has it, from its variables and its config file; with the server's base its
    chat template as well.

    Raises BaseModelError or SettingsError.
    """
    settings = load_settings({})
    loaded = load_base(base or settings.base, device=device or settings.device, cache=cache or settings.cache)
    template = read_chat_template(settings) if base in (None, settings.base) else None
    if template is not None:
        loaded.tokenizer.chat_template = template
    return loaded


def command_line(recipe: str) -> str:
    """The command as it can be repeated, whatever program this one is mounted in."""
    options = sys.argv[sys.argv.index(recipe) + 1 :] if recipe in sys.argv else []
    return shlex.join(["relay", "train", recipe, *options])[:_COMMAND_CHARS]


@contextmanager
def clear_errors(out: Path) -> Iterator[None]:
    """What a user can mend becomes one message and exit status 1; being interrupted, 130."""
    try:
        yield
    except (TrainingError, RelayError, StoreError) as error:
        _refuse(error.message, error)
    except OSError as error:
        _refuse(str(error), error)
    except KeyboardInterrupt as error:
        console.print(f"interrupted: the same command with --resume goes on from what is done in {out}")
        raise typer.Exit(130) from error


def train_and_register(
    train: Callable[[RunObserver], Trained | NextVersion], out: Path, *, register: str | None, url: str | None
) -> None:
    """Trains, reports, registers. `train` reads all files before it loads the base, so that a mistake shows at once."""
    with clear_errors(out):
        if register is not None:
            check_name(register)
        with TerminalProgress(console) as progress:
            trained = train(progress)
        _report(trained) if isinstance(trained, Trained) else _report_next(trained)
        if register is not None:
            published = add_expert(server_url(url), out, name=register, activate=True)
            console.print(f"registered as {published['name']}@{published['version']}", highlight=False)


def _refuse(message: str, error: Exception) -> NoReturn:
    console.print(message, style="red", markup=False, highlight=False)
    raise typer.Exit(1) from error


def _report(trained: Trained) -> None:
    found = trained.calibration
    answers = "" if trained.exact_match is None else f", answers {trained.exact_match:.1%} exactly"
    out = trained.guard_leaves_out
    guard = "no guard" if out is None else f"its guard leaves out {out:.1%} of them unasked"
    console.print(
        f"{trained.folder}: {trained.size_bytes:,} bytes, threshold {found.threshold:.3f}; of the held-out rows it "
        f"accepts {found.accept_rate:.1%} of its own, rejects {found.reject_rate:.1%} of the others ({guard}){answers}",
        highlight=False,
    )


def _report_next(made: NextVersion) -> None:
    console.print(
        f"{made.folder}: {made.size_bytes:,} bytes, made of {made.parent.ref} and {made.num_rows} rows", highlight=False
    )
