"""The pool benchmark against a server of its own on a tiny base, with a handful of experts."""

import json
from pathlib import Path

import pytest

from benchmarks.pool import main, working_sets
from tests.support import tiny


def test_working_sets_grow_to_all_experts() -> None:
    assert working_sets(32, 1000) == [32, 64, 96, 128, 1000]
    assert working_sets(2, 5) == [2, 4, 5]
    assert working_sets(3, 3) == [3]


def test_everything_is_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny.write_base(tmp_path / "base")
    sizes = ["--experts", "5", "--slots", "2", "--rounds", "2", "--requests", "8", "--concurrency", "2"]
    work = ["--prompt-words", "4", "--max-tokens", "3", "--popularity", "distinct", "--label", "tiny"]
    where = ["--base", str(base), "--cache", str(tmp_path / "cache")]
    assert main([*sizes, *work, *where], results=tmp_path) == 0
    printed = capsys.readouterr().out
    assert "2 slots, 8 requests a round" in printed
    assert "GB by the formula" in printed
    result = json.loads((tmp_path / "tiny.json").read_text())
    resident, larger, whole = result["working_sets"]
    assert [one["num_experts"] for one in (resident, larger, whole)] == [2, 4, 5]
    assert all(counted == {"loads_disk": 0, "loads_host": 0, "evictions": 0} for counted in resident["counts"])
    assert all(counted["loads_host"] + counted["loads_disk"] >= 2 for counted in larger["counts"])
    assert sum(counted["loads_disk"] for one in (resident, larger, whole) for counted in one["counts"]) == 3
    assert resident["of_resident"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert 0 < result["memory"]["resident_bytes"] < result["memory"]["formula_bytes"]
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")


def test_fewer_experts_than_slots_are_refused() -> None:
    with pytest.raises(SystemExit):
        main(["--experts", "3", "--slots", "4"])
