"""The bench's pictures: forgetting curves, confusion, result against cost. Computes nothing but means."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from training.evaluate.bench import Run

_WIDTH, _HEIGHT = 8.0, 5.0
_COLOURS = 10  # of matplotlib's cycle; then lines begin to be dashed
_STYLES = ("-", "--", ":", "-.")


def plot_all(out: Path, runs: Sequence[Run]) -> list[Path]:
    """PNG files in `out`, one set for each kind of prompt."""
    paths: list[Path] = []
    for prompts in dict.fromkeys(run.prompts for run in runs):
        chosen = [run for run in runs if run.prompts == prompts]
        paths.append(_save(_forgetting(chosen), out / f"forgetting-{prompts}.png"))
        paths.append(_save(_against_cost(chosen), out / f"cost-{prompts}.png"))
        for name, found in _by_method(chosen).items():
            if found[0].routing is not None:
                paths.append(_save(_confusion(found[0]), out / f"confusion-{name}-{prompts}.png"))
    return paths


def _by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {name: [run for run in runs if run.method == name] for name in dict.fromkeys(run.method for run in runs)}


def _forgetting(runs: Sequence[Run]) -> Figure:
    figure = Figure(figsize=(1.5 * _WIDTH, _HEIGHT), layout="constrained")
    axes = figure.add_subplot(
        xlabel="tasks learned", ylabel="ROUGE-L, mean over the tasks learned", title=f"Forgetting ({runs[0].prompts})"
    )
    for number, (name, found) in enumerate(_by_method(runs).items()):
        points = [(at + 1, [run.curve[at] for run in found]) for at in range(len(found[0].tasks))]
        there = [(at, mean(v for v in values if v is not None)) for at, values in points if None not in values]
        style = _STYLES[number // _COLOURS % len(_STYLES)]
        axes.plot(*zip(*there, strict=True), marker="o", linestyle=style, label=name)
    columns = 1 + len(axes.lines) // (2 * _COLOURS)
    figure.legend(loc="outside right center", fontsize="small", handlelength=3, ncols=columns)
    axes.set_xticks(range(1, 1 + max(len(run.tasks) for run in runs)))
    return figure


def _against_cost(runs: Sequence[Run]) -> Figure:
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="tight")
    axes = figure.add_subplot(
        xlabel="tokens computed a request", ylabel="AR, ROUGE-L", title=f"Result against cost ({runs[0].prompts})"
    )
    for name, found in _by_method(runs).items():
        costs = [run.costs.computed_tokens for run in found if run.costs is not None]
        if costs:
            x, y = mean(costs), mean(run.ar for run in found)
            axes.scatter([x], [y])
            axes.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize="small")
    return figure


def _confusion(run: Run) -> Figure:
    assert run.routing is not None, "only routed methods have a confusion. This is a bug."
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="tight")
    axes = figure.add_subplot(xlabel="answered by", ylabel="task", title=f"{run.method} ({run.prompts})")
    shares = [[count / max(1, sum(row)) for count in row] for row in run.routing.confusion]
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(run.routing.columns)), run.routing.columns)
    axes.set_yticks(range(len(run.tasks)), run.tasks)
    for y, row in enumerate(run.routing.confusion):
        for x, count in enumerate(row):
            axes.text(x, y, str(count), ha="center", va="center", color="white" if shares[y][x] > 0.5 else "black")
    return figure


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
