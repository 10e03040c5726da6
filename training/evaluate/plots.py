"""The bench's pictures: forgetting curves, confusion, result against cost. Computes nothing but means."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from training.evaluate.bench import Run

_WIDTH, _HEIGHT = 8.0, 5.0
_A_PANEL = 8  # curves, whose colours can still be told apart
_BAR = "tab:blue"


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
    """Panels of a few methods each, before all others in grey; who has but one point has nothing to forget."""
    curves = {name: _curve(found) for name, found in _by_method(runs).items()}
    names = [name for name, curve in curves.items() if len(curve) > 1]
    panels = [names[at : at + _A_PANEL] for at in range(0, len(names), _A_PANEL)] or [[]]
    figure = Figure(figsize=(_HEIGHT * len(panels), _HEIGHT), layout="constrained")
    figure.suptitle(f"Forgetting ({runs[0].prompts})")
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for name in names:
            axes.plot(*zip(*curves[name], strict=True), color="lightgrey", linewidth=1)
        for name in panel:
            axes.plot(*zip(*curves[name], strict=True), marker="o", label=name)
        if panel:
            axes.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
        axes.set_xlabel("tasks learned")
        axes.set_xticks(range(1, 1 + max(len(run.tasks) for run in runs)))
    figure.supylabel("ROUGE-L, mean over the tasks learned", fontsize="medium")
    return figure


def _curve(found: Sequence[Run]) -> list[tuple[int, float]]:
    """(tasks learned, mean over the runs), where every run has a value."""
    points = [(at + 1, [run.curve[at] for run in found]) for at in range(len(found[0].tasks))]
    return [(at, mean(v for v in values if v is not None)) for at, values in points if None not in values]


def _against_cost(runs: Sequence[Run]) -> Figure:
    """Two bars for each method, the best at the top; a range is from the worst to the best run."""
    by_ar = sorted(_by_method(runs).items(), key=lambda item: mean(run.ar for run in item[1]))
    figure = Figure(figsize=(_WIDTH, 1.5 + 0.22 * len(by_ar)), layout="constrained")
    figure.suptitle(f"Result and cost ({runs[0].prompts})")
    result, cost = figure.subplots(1, 2, sharey=True)
    for place, (_, found) in enumerate(by_ar):
        scores = [run.ar for run in found]
        ends = [[mean(scores) - min(scores)], [max(scores) - mean(scores)]]
        result.barh(place, mean(scores), color=_BAR, xerr=ends if len(found) > 1 else None)
        tokens = [run.costs.computed_tokens for run in found if run.costs is not None]
        if tokens:
            cost.barh(place, mean(tokens), color=_BAR)
        else:
            cost.text(0, place, " not measured", va="center", fontsize="small")
    result.set_yticks(range(len(by_ar)), [name for name, _ in by_ar])
    result.margins(y=0.01)
    result.set_xlabel("AR, ROUGE-L")
    cost.set_xlabel("tokens computed a request")
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
