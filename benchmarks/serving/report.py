"""A run for people and for the record: a table, a JSON file, a plot. Measures nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.serving.load import Side
from benchmarks.serving.statistics import FIGURES, Figures, Spread, ratios, summarise

_TITLES = {
    "tokens_per_second": "output tokens/s",
    "first_token_p50": "first token p50, ms",
    "first_token_p95": "first token p95, ms",
    "inter_token_p50": "inter-token p50, ms",
    "inter_token_p95": "inter-token p95, ms",
}
_PANELS = {
    "output tokens/s": ("tokens_per_second",),
    "time to first token, ms": ("first_token_p50", "first_token_p95"),
    "inter-token time, ms": ("inter_token_p50", "inter_token_p95"),
}
_LINES = ("-", "--")  # p50, p95


@dataclass(frozen=True)
class Measured:
    """One side's rounds."""

    side: Side
    rounds: tuple[Figures, ...]
    failures: Mapping[str, int]


def table(sides: Sequence[Measured], title: str) -> Table:
    """Medians over the rounds with the lowest and highest; for two sides also the ratio of the first to the second."""
    summaries = [summarise(measured.rounds) for measured in sides]
    ratio = _ratio(sides)
    shown = Table("", *(measured.side.name for measured in sides), *(["ratio"] if ratio else []), title=title)
    for name in FIGURES:
        cells = [summary[name].text(scale=_scale(name), digits=1) for summary in summaries]
        shown.add_row(_TITLES[name], *cells, *([ratio[name].text()] if ratio else []))
    shown.add_row("failed requests", *(str(sum(measured.failures.values())) for measured in sides))
    return shown


def write(sides: Sequence[Measured], about: Mapping[str, Any], *, folder: Path, label: str) -> None:
    """LABEL.json and LABEL.png."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record(sides, about), indent=1, ensure_ascii=False)
    (folder / f"{label}.json").write_text(text + "\n")
    plot(sides, label).savefig(folder / f"{label}.png", dpi=120)


def record(sides: Sequence[Measured], about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was measured; times in seconds."""
    return {
        **about,
        "sides": [
            {
                **asdict(measured.side),
                "rounds": [asdict(one) for one in measured.rounds],
                "over_rounds": {name: asdict(spread) for name, spread in summarise(measured.rounds).items()},
                "failures": dict(measured.failures),
            }
            for measured in sides
        ],
        "ratio": {name: asdict(spread) for name, spread in _ratio(sides).items()},
    }


def plot(sides: Sequence[Measured], title: str) -> Figure:
    """Each figure, round by round."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle(title)
    for axes, (heading, names) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        _draw(axes, sides, names)
        axes.set_title(heading)
    return figure


def _draw(axes: Axes, sides: Sequence[Measured], names: Sequence[str]) -> None:
    for index, measured in enumerate(sides):
        rounds = range(1, len(measured.rounds) + 1)
        for name, line in zip(names, _LINES, strict=False):
            values = [getattr(one, name) * _scale(name) for one in measured.rounds]
            quantile = f" {name[-3:]}" if len(names) > 1 else ""
            axes.plot(rounds, values, line, marker="o", color=f"C{index}", label=measured.side.name + quantile)
    axes.set_xlabel("round")
    axes.set_xticks(list(rounds))
    axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
    axes.legend()


def _ratio(sides: Sequence[Measured]) -> dict[str, Spread]:
    """Nothing where there is nothing to compare."""
    return ratios(sides[0].rounds, sides[1].rounds) if len(sides) > 1 else {}


def _scale(name: str) -> float:
    """Seconds are shown as milliseconds."""
    return 1.0 if name == "tokens_per_second" else 1000.0
