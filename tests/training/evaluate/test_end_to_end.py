"""The bench as a user runs it, on a tiny base, through a real `relay serve`."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.evaluate.__main__ import main
from training.evaluate.methods import METHODS
from training.evaluate.units import BaseSource

CHAINS = ("see", "see-alora", "see-late", "gates")


def run(data: Path, base: BaseSource, out: Path, *more: str, in_this_process: bool = False) -> dict[str, Any]:
    options = ["--data", str(data), "--out", str(out), "--base", base.source, "--cache", str(base.cache)]
    small = ["--device", "cpu", "--tasks", "jump,lazy", "--rows", "16", "--epochs", "1", "--jobs", "1"]
    if in_this_process:
        main([*options, *small, *more])
    else:
        subprocess.run([sys.executable, "-m", "training.evaluate", *options, *small, *more], check=True)
    record: dict[str, Any] = json.loads((out / "results.json").read_text())
    return record


def test_three_methods_run_end_to_end_and_a_second_run_does_nothing_again(
    data: Path, base_source: BaseSource, tmp_path: Path
) -> None:
    record = run(data, base_source, tmp_path, "--methods", "base,see-alora,sequential")
    units = {folder: (folder / "done.json").stat().st_mtime_ns for folder in (tmp_path / "work" / "units").iterdir()}
    assert len(units) == 4, "two experts, two stages"
    by_method = {entry["method"]: entry for entry in record["runs"]}
    assert list(by_method) == ["base", "see-alora", "sequential"]
    for entry in by_method.values():
        assert [len(row) for row in entry["rouge"]] == [1, 2]
        assert entry["ar"] == pytest.approx(sum(entry["rouge"][-1]) / 2)
        assert entry["costs"]["computed_tokens"] >= entry["costs"]["prompt_tokens"] > 0
    routing = by_method["see-alora"]["routing"]
    assert routing["columns"] == ["jump", "lazy", "base"]
    assert [sum(row) for row in routing["confusion"]] == [6, 6]
    assert set(routing["fallback"]) == {"paris", "general"}
    assert by_method["base"]["training_seconds"] == 0 < by_method["sequential"]["training_seconds"]
    assert by_method["base"]["bwt"] == 0

    report = (tmp_path / "report.md").read_text()
    for name in ("`base`", "`see-alora`", "`sequential`", "Who answered", "Strangers"):
        assert name in report
    for picture in ("forgetting-definition", "cost-definition", "confusion-see-alora-definition"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 1000
        assert f"({picture}.png)" in report

    answers = (tmp_path / "work" / "answers.jsonl").read_text()
    again = run(data, base_source, tmp_path, "--methods", "base,see-alora,sequential", in_this_process=True)
    assert again["runs"] == record["runs"]
    assert (tmp_path / "work" / "answers.jsonl").read_text() == answers
    assert {f: (f / "done.json").stat().st_mtime_ns for f in (tmp_path / "work" / "units").iterdir()} == units


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_method_runs_with_both_kinds_of_prompts(data: Path, base_source: BaseSource, tmp_path: Path) -> None:
    record = run(data, base_source, tmp_path, "--methods", "all", "--prompts", "definition,input", "--eval-rows", "3")
    assert [(entry["prompts"], entry["method"]) for entry in record["runs"]] == [
        (kind, name) for kind in ("definition", "input") for name in METHODS
    ]
    for entry in record["runs"]:
        assert 0 <= entry["ar"] <= 100
        elsewhere = ("arrow", "l2r-merge", "centroid", "classifier")  # some of it, at least, is not in the server
        assert (entry["costs"] is None) == (entry["method"] in elsewhere)
        assert (entry["routing"] is not None) == METHODS[entry["method"]].routed
        at_the_end = entry["method"].startswith(("elrea", "l2r")) or entry["method"] in (
            "multi-task",
            "classifier",
            "arrow",
        )
        assert (entry["bwt"] is None) == at_the_end
        chained = entry["method"].removesuffix("-guard") in CHAINS
        assert (entry["routing"] is not None and entry["routing"]["fallback"] is not None) == chained
    by_method = {entry["method"]: entry for entry in record["runs"] if entry["prompts"] == "input"}
    assert by_method["elrea-base"]["rouge"] == by_method["multi-task"]["rouge"]
    prompt_tokens = by_method["base"]["costs"]["prompt_tokens"]
    for name, branches in {"elrea": 3, "elrea-top2": 3, "elrea-random": 3, "elrea-top1": 1}.items():
        computed = by_method[name]["costs"]["computed_tokens"]
        assert branches * prompt_tokens <= computed < (branches + 1) * prompt_tokens + 48 * branches
    report = (tmp_path / "report.md").read_text()
    for name in METHODS:
        kinds = name.removesuffix("-guard") in CHAINS
        assert len(re.findall(rf"^\| `{name}` \|", report, re.MULTILINE)) == 6
        assert (report.count(f"| `{name}` |") == 8) == kinds
    for line in report.splitlines():
        if line.startswith("| `elrea` | ELREA"):
            assert "| – | never |" in line
