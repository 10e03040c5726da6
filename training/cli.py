"""`relay train ...`: options to recipe, errors to messages. Knows no training."""

import shlex
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from expert_store import StoreError, check_name
from server.client import add_expert
from server.errors import RelayError
from server.model.base import BUNDLED, load_base
from server.settings import Settings, server_url
from training.errors import TrainingError
from training.progress import TerminalProgress
from training.see import About, SeeOptions, Trained, read_data, train_see

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train experts.")
_console = Console(stderr=True)
_DEFAULTS = SeeOptions()
_COMMAND_CHARS = 4000  # what a manifest holds


class Kind(StrEnum):
    ALORA = "alora"
    LORA = "lora"


class WakeAt(StrEnum):
    PROMPT = "prompt"
    INDICATOR = "indicator"


@app.callback()
def _train() -> None:
    """Train experts."""


@app.command()
def see(
    data: Annotated[Path, typer.Option(help="JSON lines {id, input, output}: the expert's own task.")],
    negatives: Annotated[list[Path], typer.Option(help="JSON lines {id, input}: what to reject. More may follow it.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter and its manifest.")],
    more: Annotated[list[Path] | None, typer.Argument(help="More files of negatives.", metavar="[NEGATIVES]")] = None,
    kind: Annotated[Kind, typer.Option(help="alora: active behind the prompt; lora: on all of it.")] = Kind.ALORA,
    wake: Annotated[
        WakeAt, typer.Option(help="alora wakes up at the generation prompt, or at the indicator: cheaper to ask.")
    ] = WakeAt.PROMPT,
    register: Annotated[str | None, typer.Option(metavar="NAME", help="Register it on a server by this name.")] = None,
    url: Annotated[str | None, typer.Option(help="The server for --register (default: RELAY_URL)")] = None,
    base: Annotated[str, typer.Option(envvar="RELAY_BASE", help="bundled, folder, .gguf or hub id.")] = BUNDLED,
    device: Annotated[str, typer.Option(envvar="RELAY_DEVICE", help="auto, cpu or cuda.")] = "auto",
    cache: Annotated[Path | None, typer.Option(envvar="RELAY_CACHE", help="Where a converted base is kept.")] = None,
    rank: Annotated[int, typer.Option(min=1, max=512)] = _DEFAULTS.rank,
    alpha: Annotated[float | None, typer.Option(min=1e-3, help="LoRA's alpha (default: twice the rank)")] = None,
    targets: Annotated[str, typer.Option(help="Linear layers by name, with commas (default: all)")] = "",
    epochs: Annotated[int, typer.Option(min=1)] = _DEFAULTS.epochs,
    lr: Annotated[float, typer.Option(min=1e-8, help="Highest learning rate.")] = _DEFAULTS.learning_rate,
    batch_size: Annotated[int, typer.Option(min=1)] = _DEFAULTS.batch_size,
    decision_weight: Annotated[
        float, typer.Option(min=0.0, help="Weight of the accepting or rejecting token.")
    ] = _DEFAULTS.decision_weight,
    max_tokens: Annotated[int | None, typer.Option(min=16, help="Refuse longer rows (default: context)")] = None,
    seed: Annotated[int, typer.Option(min=0)] = _DEFAULTS.seed,
    eval_data: Annotated[Path | None, typer.Option(help="Held-out own rows (default: 5% of --data)")] = None,
    eval_negatives: Annotated[Path | None, typer.Option(help="Held-out rows to reject (default: 5%)")] = None,
    description: Annotated[str, typer.Option(help="One sentence for the manifest.")] = "",
    sample: Annotated[list[str] | None, typer.Option(help="A prompt it is for; repeatable.")] = None,
    start: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Begin with this adapter's weights, of the same rank and targets."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue an unfinished run in --out.")] = False,
) -> None:
    """Train an expert that recognises its own queries (SEE)."""
    options = SeeOptions(
        kind="alora" if kind is Kind.ALORA else "lora",
        wake="indicator" if wake is WakeAt.INDICATOR else "prompt",
        rank=rank,
        alpha=alpha,
        targets=tuple(name for name in targets.split(",") if name),
        epochs=epochs,
        learning_rate=lr,
        batch_size=batch_size,
        decision_weight=decision_weight,
        max_tokens=max_tokens,
        seed=seed,
    )
    run = _Run(
        options=options,
        about=About(name=register, description=description, samples=tuple(sample or ()), command=_command()),
        own=data,
        negatives=(*negatives, *(more or [])),
        held_out_own=eval_data,
        held_out_negatives=eval_negatives,
        out=out,
        resume=resume,
        start=start,
    )
    try:
        if register is not None:
            check_name(register)
        _report(_trained(run, base=base, device=device, cache=cache or default_cache()))
        if register is not None:
            published = add_expert(server_url(url), out, name=register, activate=True)
            _console.print(f"registered as {published['name']}@{published['version']}", highlight=False)
    except (TrainingError, RelayError, StoreError) as error:
        _console.print(error.message, style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        _console.print(f"interrupted: the same command with --resume goes on from the last checkpoint in {out}")
        raise typer.Exit(130) from error


@dataclass(frozen=True, kw_only=True)
class _Run:
    options: SeeOptions
    about: About
    own: Path
    negatives: tuple[Path, ...]
    held_out_own: Path | None
    held_out_negatives: Path | None
    out: Path
    resume: bool
    start: Path | None


def _trained(run: _Run, *, base: str, device: str, cache: Path) -> Trained:
    """Data files are read before the base is loaded: a mistake in them shows at once."""
    data = read_data(run.own, run.negatives, held_out_own=run.held_out_own, held_out_negatives=run.held_out_negatives)
    loaded = load_base(base, device=device, cache=cache)
    with TerminalProgress(_console) as progress:
        return train_see(
            loaded, data, run.options, run.about, out=run.out, resume=run.resume, observer=progress, start=run.start
        )


def _report(trained: Trained) -> None:
    found = trained.calibration
    _console.print(
        f"{trained.folder}: {trained.size_bytes:,} bytes, threshold {found.threshold:.3f}; of the held-out rows it "
        f"accepts {found.accept_rate:.1%} of its own, rejects {found.reject_rate:.1%} of the others, "
        f"answers {trained.exact_match:.1%} exactly",
        highlight=False,
    )


def _command() -> str:
    """The command line as it can be repeated, whatever program this one is mounted in."""
    options = sys.argv[sys.argv.index("see") + 1 :] if "see" in sys.argv else []
    return shlex.join(["relay", "train", "see", *options])[:_COMMAND_CHARS]


def default_cache() -> Path:
    """Where the server keeps a converted base too."""
    folder: Path = Settings.model_fields["cache"].get_default(call_default_factory=True)
    return folder
