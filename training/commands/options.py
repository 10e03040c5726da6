"""Options that several commands take, with their help. Knows no recipe."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from training.selection import Wake

Data = Annotated[Path, typer.Option(help="JSON lines {id, input, output}: the expert's own task.")]
Inputs = Annotated[Path, typer.Option(help="JSON lines {id, input}: the expert's own task; answers are not needed.")]
Negatives = Annotated[list[Path], typer.Option(help="JSON lines {id, input}: what to reject. More may follow it.")]
Out = Annotated[Path, typer.Option(help="Folder for the adapter and its manifest.")]
More = Annotated[list[Path] | None, typer.Argument(help="More files of negatives.", metavar="[NEGATIVES]")]
Register = Annotated[str | None, typer.Option(metavar="NAME", help="Register it on a server by this name.")]
Url = Annotated[str | None, typer.Option(help="The server for --register (default: RELAY_URL)")]
BaseModel = Annotated[
    str | None, typer.Option(envvar="RELAY_BASE", help="bundled, folder, .gguf or hub id (default: the server's)")
]
Device = Annotated[str | None, typer.Option(envvar="RELAY_DEVICE", help="auto, cpu or cuda (default: the server's)")]
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


class WakeAt(StrEnum):
    PROMPT = "prompt"
    INDICATOR = "indicator"


Waking = Annotated[
    WakeAt, typer.Option("--wake", help="It wakes up at the generation prompt, or at the indicator: cheaper to ask.")
]


def as_wake(at: WakeAt) -> Wake:
    """As recipes have it."""
    return "indicator" if at is WakeAt.INDICATOR else "prompt"


def names(targets: str) -> tuple[str, ...]:
    """Of layers, with commas between them."""
    return tuple(name for name in targets.split(",") if name)
