"""`relay train ...`: options to recipe, errors to messages. Knows no training."""

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from expert_store import ROUTER_FILE, ExpertStore, StoreError, check_name
from server.client import add_expert
from server.errors import RelayError
from server.model.base import BUNDLED, load_base
from server.settings import load_settings, server_url
from training.data import read_rows, refuse_contradictions
from training.elrea import ElreaOptions
from training.elrea_command import run_elrea
from training.errors import InvalidRun, TrainingError
from training.gate import GateOptions, read_parent, train_gate
from training.progress import RunObserver, TerminalProgress
from training.router import RouterOptions, TrainedRouter, choose_experts, read_router_data, train_router
from training.see import SeeOptions, train_see
from training.selection import About, Trained, Wake, read_data
from training.sfa import NextVersion, SfaOptions, find_parent, train_sfa

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train experts.")
_console = Console(stderr=True)
_DEFAULTS = SeeOptions()
_GATE_DEFAULTS = GateOptions()
_ELREA_DEFAULTS = ElreaOptions()
_ROUTER_DEFAULTS = RouterOptions()
_SFA_DEFAULTS = SfaOptions()
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


class GateKind(StrEnum):
    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"


class By(StrEnum):
    BIRCH = "birch"
    RANDOM = "random"


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
    average: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="In the end, the weight of what --start began with.")
    ] = _DEFAULTS.average,
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
        average=average,
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


@app.command()
def sfa(
    expert: Annotated[str, typer.Option(help="NAME, NAME@VERSION or NAME@ALIAS of the store: the parent.")],
    data: Annotated[list[Path], typer.Option(help="JSON lines {id, input, output}: new rows; repeatable, in turn.")],
    out: Out,
    p: Annotated[float, typer.Option("--p", help="Average after each such share of a data set's steps.")] = (
        _SFA_DEFAULTS.share
    ),
    beta: Annotated[float, typer.Option(help="Weight of what the data set began with.")] = _SFA_DEFAULTS.beta,
    negatives: Annotated[
        list[Path] | None, typer.Option(help="JSON lines {id, input}: what to go on rejecting; repeatable.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(envvar="RELAY_STORE", help="The expert store (default: the server's)")
    ] = None,
    register: Annotated[bool, typer.Option("--register", help="Publish it on a server as the next version.")] = False,
    url: Url = None,
    base: BaseModel = BUNDLED,
    device: Device = "auto",
    cache: Cache = None,
    epochs: Epochs = _SFA_DEFAULTS.epochs,
    lr: Rate = _SFA_DEFAULTS.learning_rate,
    batch_size: BatchSize = _SFA_DEFAULTS.batch_size,
    max_tokens: MaxTokens = None,
    seed: Seed = _SFA_DEFAULTS.seed,
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
        parent = find_parent(store or _default("store"), expert)
        files = [read_rows(path, answers=True) for path in data]
        rejected = [read_rows(path, answers=False) for path in negatives or ()]
        for file in files:
            refuse_contradictions(file, rejected)
        loaded = load_base(base, device=device, cache=cache or default_cache())
        return train_sfa(
            loaded,
            parent,
            files,
            options,
            negatives=rejected,
            command=_command("sfa"),
            out=out,
            resume=resume,
            observer=observer,
        )

    name = expert.partition("@")[0]
    _run(run, out, register=name if register else None, url=url)


@app.command()
def elrea(
    data: Annotated[Path, typer.Option(help="JSON lines {id, input, output}: rows of many kinds, mixed.")],
    out: Annotated[Path, typer.Option(help="Folder for the base adapter, the features and the experts.")],
    clusters: Annotated[int, typer.Option(min=1, max=256, help="How many experts.")] = _ELREA_DEFAULTS.clusters,
    clustering: Annotated[By, typer.Option(help="birch: by gradient; random: of equal size, to compare.")] = By.BIRCH,
    sample: Annotated[int, typer.Option(min=2, help="Rows that are clustered; others go to the nearest.")] = (
        _ELREA_DEFAULTS.sample
    ),
    width: Annotated[int, typer.Option(min=1, max=131_072, help="Of the projected gradients.")] = _ELREA_DEFAULTS.width,
    register: Annotated[
        str | None, typer.Option(metavar="PREFIX", help="Register PREFIX-base, PREFIX-0 ... on a server.")
    ] = None,
    url: Url = None,
    base: BaseModel = BUNDLED,
    device: Device = "auto",
    cache: Cache = None,
    rank: Rank = _ELREA_DEFAULTS.rank,
    alpha: Alpha = None,
    targets: Targets = "",
    epochs: Epochs = _ELREA_DEFAULTS.epochs,
    expert_epochs: Annotated[int | None, typer.Option(min=1, help="Of each expert (default: --epochs)")] = None,
    lr: Rate = _ELREA_DEFAULTS.learning_rate,
    batch_size: BatchSize = _ELREA_DEFAULTS.batch_size,
    max_tokens: MaxTokens = None,
    seed: Seed = _ELREA_DEFAULTS.seed,
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
        targets=_names(targets),
        epochs=epochs,
        expert_epochs=expert_epochs,
        learning_rate=lr,
        batch_size=batch_size,
        max_tokens=max_tokens,
        seed=seed,
    )
    run_elrea(
        options,
        About(name=register, description=description, command=_command("elrea")),
        data=data,
        out=out,
        base=base,
        device=device,
        cache=cache or default_cache(),
        resume=resume,
        url=url,
        console=_console,
    )


@app.command()
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
    base: BaseModel = BUNDLED,
    device: Device = "auto",
    cache: Cache = None,
    epochs: Epochs = _ROUTER_DEFAULTS.epochs,
    lr: Rate = _ROUTER_DEFAULTS.learning_rate,
    batch_size: BatchSize = _ROUTER_DEFAULTS.batch_size,
    max_tokens: MaxTokens = None,
    seed: Seed = _ROUTER_DEFAULTS.seed,
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
    with _clear_errors(out):
        opened = ExpertStore.open(_existing(store or _default("store")))
        data = read_router_data(choose_experts(opened.catalog, expert or ()), memory, eval_memory)
        with TerminalProgress(_console) as progress:
            loaded = load_base(base, device=device, cache=cache or default_cache())
            trained = train_router(
                loaded, data, options, command=_command("router"), out=out, resume=resume, observer=progress
            )
        _report_router(trained)
        if register:
            with opened.stage() as staged:
                shutil.copyfile(out / ROUTER_FILE, staged.folder / ROUTER_FILE)
                published = opened.publish_router(staged, trained.draft)
            _console.print(f"registered as version {published.version}", highlight=False)


def _existing(store: Path) -> Path:
    """Raises InvalidRun: opening a store would make it."""
    if not store.is_dir():
        raise InvalidRun(f"{store} is not there: name the folder of the experts' store with --store or RELAY_STORE")
    return store


def _report_router(trained: TrainedRouter) -> None:
    quality = trained.draft.quality
    _console.print(
        f"{trained.folder}: {len(trained.draft.experts)} experts; loss on {quality['held_out']:.0f} held-out rows "
        f"{quality['loss']:.4f}, evenly mixed {quality['loss_uniform']:.4f}, the right expert alone "
        f"{quality['loss_oracle']:.4f}; it leads {quality['leader_accuracy']:.1%} of the time",
        highlight=False,
    )


@contextmanager
def _clear_errors(out: Path) -> Iterator[None]:
    """What a user can mend becomes one message and exit status 1."""
    try:
        yield
    except (TrainingError, RelayError, StoreError) as error:
        _console.print(error.message, style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        _console.print(f"interrupted: the same command with --resume goes on from the last checkpoint in {out}")
        raise typer.Exit(130) from error


def _run(
    train: Callable[[RunObserver], Trained | NextVersion], out: Path, *, register: str | None, url: str | None
) -> None:
    """Trains, reports, registers. `train` reads all files before it loads the base, so that a mistake shows at once."""
    with _clear_errors(out):
        if register is not None:
            check_name(register)
        with TerminalProgress(_console) as progress:
            trained = train(progress)
        _report(trained) if isinstance(trained, Trained) else _report_next(trained)
        if register is not None:
            published = add_expert(server_url(url), out, name=register, activate=True)
            _console.print(f"registered as {published['name']}@{published['version']}", highlight=False)


def _report(trained: Trained) -> None:
    found = trained.calibration
    answers = "" if trained.exact_match is None else f", answers {trained.exact_match:.1%} exactly"
    out = trained.guard_leaves_out
    guard = "no guard" if out is None else f"its guard leaves out {out:.1%} of them unasked"
    _console.print(
        f"{trained.folder}: {trained.size_bytes:,} bytes, threshold {found.threshold:.3f}; of the held-out rows it "
        f"accepts {found.accept_rate:.1%} of its own, rejects {found.reject_rate:.1%} of the others ({guard}){answers}",
        highlight=False,
    )


def _report_next(made: NextVersion) -> None:
    _console.print(
        f"{made.folder}: {made.size_bytes:,} bytes, made of {made.parent.ref} and {made.num_rows} rows", highlight=False
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
    return _default("cache")


def _default(setting: str) -> Path:
    """As the server has it, from its variables and its config file. Raises SettingsError."""
    folder: Path = getattr(load_settings({}), setting)
    return folder
