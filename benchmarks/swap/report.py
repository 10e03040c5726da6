"""A run for people and for the record: tables, and what the file holds. Measures nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from benchmarks.serving.statistics import Spread
from benchmarks.swap.load import Phase, Round
from benchmarks.swap.swapping import Registration


def registration_table(registrations: Sequence[Registration], rank: int) -> Table:
    """Medians with the lowest and the highest."""
    shown = Table(
        "from sending the files", "ms", title=f"{len(registrations)} registrations of rank {rank}, idle server"
    )
    shown.add_row("until the 201", Spread.of([one.registered for one in registrations]).text(scale=1000, digits=0))
    shown.add_row(
        "until a dry run asks it", Spread.of([one.routable for one in registrations]).text(scale=1000, digits=0)
    )
    return shown


def phase_table(rounds: Sequence[Round], *, exact: bool) -> Table:
    """The phases side by side, medians with the lowest and the highest round, and the swaps in the title."""
    swaps = [swap for one in rounds for swap in one.swaps]
    rate = len(swaps) / sum(one.swapping.seconds for one in rounds)
    took = f", {Spread.of([swap.seconds for swap in swaps]).text(scale=1000, digits=0)} ms each" if swaps else ""
    title = f"{len(swaps)} swaps in {len(rounds)} rounds, {rate:.2f} a second{took}"
    shown = Table("", "quiet", "swapping", "ratio", title=title)
    before, during = [one.quiet for one in rounds], [one.swapping for one in rounds]

    def add_counts(name: str, count: Callable[[Phase], int]) -> None:
        quiet, swapping = (sum(map(count, phases)) for phases in (before, during))
        shown.add_row(name, str(quiet), str(swapping), "")

    add_counts("answers", lambda phase: phase.answers)
    add_counts("failed requests", lambda phase: sum(phase.failures.values()))
    if exact:
        add_counts("changed texts", lambda phase: phase.changed)
    for name, figure, scale in (
        ("output tokens/s", "tokens_per_second", 1),
        ("inter-token p50, ms", "gap_p50", 1000),
        ("inter-token p95, ms", "gap_p95", 1000),
    ):
        quiet, swapping = (
            Spread.of([getattr(phase, figure) for phase in phases]).text(scale=scale, digits=1)
            for phases in (before, during)
        )
        shown.add_row(name, quiet, swapping, Spread.of([one.ratio(figure) for one in rounds]).text())
    return shown


def record(about: Mapping[str, Any], registrations: Sequence[Registration], rounds: Sequence[Round]) -> dict[str, Any]:
    """Everything that was measured; times in seconds."""
    over = {
        name: asdict(Spread.of([getattr(one, name) for one in registrations])) for name in ("registered", "routable")
    }
    return {
        **about,
        "registrations": {"each": [asdict(one) for one in registrations], "over_all": over},
        "gap_p95_ratio": asdict(Spread.of([one.ratio("gap_p95") for one in rounds])),
        "rounds": [asdict(one) for one in rounds],
    }
