"""The report's tables: kinds of experts side by side, ranges over orders and seeds, who never leaves a prompt alone."""

from dataclasses import replace
from pathlib import Path

from training.evaluate.bench import Costs, Routing, Run
from training.evaluate.report import write_report

ROUTED = ("83.2 (83.2 to 83.2)", "80.0 (70.0 to 90.0)")
HEAD = {"command": "bench", "date": "today", "commit": "abc", "machine": {"cpu": "some"}}


def run(method: str, ar: float = 50.0, *, order: int = 0, seed: int = 0, fallback: float | None = None) -> Run:
    routing = None
    if not method.startswith("oracle"):
        unseen = None if fallback is None else {"paris": fallback, "general": 100.0}
        routing = Routing(["jump", "lazy", "base"], [[6, 0, 0], [1, 4, 1]], 83.25, unseen, fallback)
    return Run(
        method=method,
        prompts="definition",
        order=order,
        seed=seed,
        tasks=["jump", "lazy"],
        rouge=[[ar], [ar, ar]],
        exact=[[1.0], [1.0, 1.0]],
        ar=ar,
        bwt=ar - 50,
        curve=[ar, ar],
        exact_ar=1.0,
        exact_bwt=0.0,
        training_seconds=7.0,
        routing=routing,
        costs=Costs(11.0, 20.0, 33.0, 30.0),
    )


def report(out: Path, *runs: Run) -> list[str]:
    write_report(out, HEAD, runs)
    return (out / "report.md").read_text().splitlines()


def section(lines: list[str], title: str) -> list[list[str]]:
    """Cells of the table under a title, its head and ruler left out; nothing where there is no such section."""
    starts = [number for number, line in enumerate(lines) if line.startswith(f"### {title}")]
    if not starts:
        return []
    table = lines[starts[0] + 2 :]
    table = table[: table.index("")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_kinds_of_experts_stand_side_by_side_with_their_experts_by_name(tmp_path: Path) -> None:
    lines = report(tmp_path, run("oracle-alora", 61), run("gates", 40, fallback=90), run("see-alora", 60, fallback=80))
    assert section(lines, "Kinds of experts") == [
        ["activated", "`see-alora`", "60.0", "61.0", "83.2", "80.0", "11.0", "33.0", "7.0"],
        ["plain, asked through gates", "`gates`", "40.0", "–", "83.2", "90.0", "11.0", "33.0", "7.0"],
    ]


def test_one_kind_alone_is_compared_with_nobody(tmp_path: Path) -> None:
    assert section(report(tmp_path, run("see-alora"), run("oracle-alora")), "Kinds of experts") == []


def test_several_orders_and_seeds_are_shown_with_their_range(tmp_path: Path) -> None:
    see = [run("see", 50, fallback=70), run("see", 53, order=1, fallback=90), run("see", 56, seed=2, fallback=80)]
    lines = report(tmp_path, *see, run("oracle"))
    assert section(lines, "Over orders and seeds") == [
        ["`see`", "0, 1", "0, 2", "53.0 (50.0 to 56.0)", "3.0 (0.0 to 6.0)", *ROUTED]
    ]
    assert section(report(tmp_path, run("see"), run("oracle")), "Over orders and seeds") == []


def test_a_router_that_always_answers_has_not_failed_to_fall_back(tmp_path: Path) -> None:
    lines = report(tmp_path, run("l2r-wavg"), run("see", fallback=80), run("oracle"))
    cells = {line.split("|")[1].strip(): line for line in reversed(lines) if line.startswith("| `")}
    assert "| 83.2 | never |" in cells["`l2r-wavg`"]
    assert "| 83.2 | 80.0 |" in cells["`see`"]
    assert "| – | – |" in cells["`oracle`"]
    assert not any("Strangers" in line for line in report(tmp_path, run("l2r-wavg")))


def test_what_the_server_did_not_play_has_no_costs(tmp_path: Path) -> None:
    lines = report(tmp_path, replace(run("l2r-merge"), costs=None, routing=None))
    assert any("| – | never | – | – | – | 7.0 |" in line for line in lines)
