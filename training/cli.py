"""`relay train ...`: options to recipe, errors to messages. Knows no training."""

import shlex
import sys
from collections.abc import Callable
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
from training.gate import GateOptions, read_parent, train_gate
from training.progress import RunObserver, TerminalProgress
from training.see import SeeOptions, train_see
from training.selection import About, Trained, Wake, read_data

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train experts.")
_console = Console(stderr=True)
_DEFAULTS = SeeOptions()
_GATE_DEFAULTS = GateOptions()
_COMMAND_CHARS = 4000  # what a manifest holds

# Options that recipes share.
Data = Annotated[Path, typer.Option(help="JSON lines {id, input, output}: the expert's own task.")]
Inputs = Annotated[Path, typer.Option(help="JSON lines {id, input}: the expert's own task; answers are not needed.")]
Negatives = Annotated[list[Path], typer.Option(help="JSON lines {id, input}: what to reject. More may follow it.")]
Out = Annotated[Path, typer.Option(help="Folder for the adapter and its manifest.")]
More = Annotated[list[Path] | None, typer.Argument(help="More files of negatives.", metavar="[NEGATIVES]")]
Register = Annotated[str | None, typer.Option(metavar="NAME", help="Register it on a server by this name.")]
Url = Annotated[str | None, typer.Option(help="The server for --register (default: RELAY_URL)")]
BaseModel = Annotated[str, typer.Option(envvar="RELAY_BASE", help="bundled, folder, .gguf or hub id.")]
Device = Annotated[str, typer.Option(envvar="RELAY_DEVICE", help="auto, cpu or cuda.")]
Cache = Annotated[Path | None, typer.Option(envvar="RELAY_CACHE", help="Where a converted base is kept.")]
Rank = Annotated[int, typer.Option(min=1, max=512)]
Alpha = Annotated[float | None, typer.Option(min=1e-3, help="LoRA's alpha (default: twice the rank)")]
Targets = Annotated[str, typer.Option(help="Linear layers by name, with commas (default: all)")]
Epochs = Annotated[int, typer.Option(min=1)]
Rate = Annotated[float, typer.Option(min=1e-8, help="Highest learning rate.")]
BatchSize = Annotated[int, typer.Option(min=1)]
DecisionWeight = Annotated[float, typer.Option(min=0.0, help="Weight of the accepting or rejecting token.")]
MaxTokens = Annotated[int | None, typer.Option(min=16, help="Refuse longer rows (default: context)")]
Seed = Annotated[int, typer.Option(min=0)]
EvalData = Annotated[Path | None, typer.Option(help="Held-out own rows (default: 5% of --data)")]
EvalNegatives = Annotated[Path | None, typer.Option(help="Held-out rows to reject (default: 5%)")]
Description = Annotated[str, typer.Option(help="One sentence for the manifest.")]
Samples = Annotated[list[str] | None, typer.Option("--sample", help="A prompt it is for; repeatable.")]
Resume = Annotated[bool, typer.Option(help="Continue an unfinished run in --out.")]


class Kind(StrEnum):
    ALORA = "alora"
    LORA = "lora"


class WakeAt(StrEnum):
    PROMPT = "prompt"
    INDICATOR = "indicator"


Waking = Annotated[
    WakeAt, typer.Option("--wake", help="It wakes up at the generation prompt, or at the indicator: cheaper to ask.")
]


@app.callback()
def _train() -> None:
    """Train experts."""


@app.command()
def see(
    data: Data,
    negatives: Negatives,
    out: Out,
    more: More = None,
    kind: Annotated[Kind, typer.Option(help="alora: active behind the prompt; lora: on all of it.")] = Kind.ALORA,
    wake: Waking = WakeAt.PROMPT,
    register: Register = None,
    url: Url = None,
    base: BaseModel = BUNDLED,
    device: Device = "auto",
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
    resume: Resume = False,
) -> None:
    """Train an expert that recognises its own queries (SEE)."""
    options = SeeOptions(
        kind="alora" if kind is Kind.ALORA else "lora",
        wake=_wake(wake),
        rank=rank,
        alpha=alpha,
        targets=_names(targets),
        epochs=epochs,
        learning_rate=lr,
        batch_size=batch_size,
        decision_weight=decision_weight,
        max_tokens=max_tokens,
        seed=seed,
    )
    about = About(name=register, description=description, samples=tuple(sample or ()), command=_command("see"))

    def run(observer: RunObserver) -> Trained:
        rows = read_data(
            data,
            (*negatives, *(more or [])),
            answers=True,
            held_out_own=eval_data,
            held_out_negatives=eval_negatives,
        )
        loaded = load_base(base, device=device, cache=cache or default_cache())
        return train_see(loaded, rows, options, about, out=out, resume=resume, observer=observer, start=start)

    _run(run, out, register=register, url=url)


@app.command()
def gate(
    expert: Annotated[Path, typer.Option(help="Folder of the plain LoRA, as PEFT saved it.")],
    data: Inputs,
    negatives: Negatives,
    out: Out,
    more: More = None,
    wake: Waking = WakeAt.PROMPT,
    register: Register = None,
    url: Url = None,
    base: BaseModel = BUNDLED,
    device: Device = "auto",
    cache: Cache = None,
    rank: Rank = _GATE_DEFAULTS.rank,
    alpha: Alpha = None,
    targets: Targets = "",
    epochs: Epochs = _GATE_DEFAULTS.epochs,
    lr: Rate = _GATE_DEFAULTS.learning_rate,
    batch_size: BatchSize = _GATE_DEFAULTS.batch_size,
    decision_weight: DecisionWeight = _GATE_DEFAULTS.decision_weight,
    max_tokens: MaxTokens = None,
    seed: Seed = _GATE_DEFAULTS.seed,
    eval_data: EvalData = None,
    eval_negatives: EvalNegatives = None,
    description: Description = "",
    sample: Samples = None,
    resume: Resume = False,
) -> None:
    """Train a gate, which recognises the queries of a plain LoRA trained elsewhere."""
    options = GateOptions(
        wake=_wake(wake),
        rank=rank,
        alpha=alpha,
        targets=_names(targets),
        epochs=epochs,
        learning_rate=lr,
        batch_size=batch_size,
        decision_weight=decision_weight,
        max_tokens=max_tokens,
        seed=seed,
    )
    about = About(name=register, description=description, samples=tuple(sample or ()), command=_command("gate"))

    def run(observer: RunObserver) -> Trained:
        parent = read_parent(expert)
        rows = read_data(
            data,
            (*negatives, *(more or [])),
            answers=False,
            held_out_own=eval_data,
            held_out_negatives=eval_negatives,
        )
        loaded = load_base(base, device=device, cache=cache or default_cache())
        return train_gate(loaded, parent, rows, options, about, out=out, resume=resume, observer=observer)

    _run(run, out, register=register, url=url)


def _run(train: Callable[[RunObserver], Trained], out: Path, *, register: str | None, url: str | None) -> None:
    """Trains, reports, registers. `train` reads all files before it loads the base, so that a mistake shows at once."""
    try:
        if register is not None:
            check_name(register)
        with TerminalProgress(_console) as progress:
            trained = train(progress)
        _report(trained)
        if register is not None:
            published = add_expert(server_url(url), out, name=register, activate=True)
            _console.print(f"registered as {published['name']}@{published['version']}", highlight=False)
    except (TrainingError, RelayError, StoreError) as error:
        _console.print(error.message, style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        _console.print(f"interrupted: the same command with --resume goes on from the last checkpoint in {out}")
        raise typer.Exit(130) from error


def _report(trained: Trained) -> None:
    found = trained.calibration
    answers = "" if trained.exact_match is None else f", answers {trained.exact_match:.1%} exactly"
    _console.print(
        f"{trained.folder}: {trained.size_bytes:,} bytes, threshold {found.threshold:.3f}; of the held-out rows it "
        f"accepts {found.accept_rate:.1%} of its own, rejects {found.reject_rate:.1%} of the others{answers}",
        highlight=False,
    )


def _wake(at: WakeAt) -> Wake:
    return "indicator" if at is WakeAt.INDICATOR else "prompt"


def _names(targets: str) -> tuple[str, ...]:
    return tuple(name for name in targets.split(",") if name)


def _command(recipe: str) -> str:
    """The command line as it can be repeated, whatever program this one is mounted in."""
    options = sys.argv[sys.argv.index(recipe) + 1 :] if recipe in sys.argv else []
    return shlex.join(["relay", "train", recipe, *options])[:_COMMAND_CHARS]


def default_cache() -> Path:
    """Where the server keeps a converted base too."""
    folder: Path = Settings.model_fields["cache"].get_default(call_default_factory=True)
    return folder
