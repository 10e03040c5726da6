"""The steps that are timed compute what they should, and the record holds what was measured."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.decode_step import Bench, copy_rate, main
from server.model.base import load_base
from tests.support import tiny


def test_steps_read_the_bytes_they_say_and_experts_change_them(tmp_path: Path) -> None:
    folder = tiny.write_base(tmp_path / "base")
    base = load_base(str(folder), dtype="fp32", device="cpu", cache=tmp_path)
    num_weights = sum(parameter.numel() for parameter in base.model.parameters())
    bench = Bench(base, num_rows=3, context=40, rank=16)
    with torch.inference_mode():
        plain, changed = (bench.runner.run(bench.plan(3, experts=experts)).all_WV for experts in (False, True))
    assert plain.shape == (3, 400)
    assert float((plain - changed).abs().max()) > 0
    keys_and_values = 2 * 3 * 2 * 16 * 40  # layers, heads, width, tokens
    assert bench.step_bytes(3, experts=False) == 4 * (num_weights + 3 * keys_and_values)
    ranks = sum(16 * (i + o) for i, o in base.spec.linears.values())
    assert bench.lasting_bytes() == 4 * (num_weights + 3 * 48 * keys_and_values // 40 + 3 * ranks)
    assert bench.step_bytes(3, experts=True) - bench.step_bytes(3, experts=False) == 4 * 3 * ranks


def test_it_measures_and_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.write_base(tmp_path / "base")
    flags = ["--base", str(folder), "--cache", str(tmp_path), "--device", "cpu", "--rows", "1,2", "--steps", "3"]
    assert main([*flags, "--label", "tried"], results=tmp_path) == 0
    record = json.loads((tmp_path / "tried.json").read_text())
    assert [(row["rows"], row["experts"]) for row in record["seconds"]] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    for row in record["seconds"]:
        assert row["floor"] > 0
        assert 0 < row["launched"]["low"] <= row["launched"]["median"] <= row["launched"]["high"]
        assert row["graph"] is None
    assert "tokens/s" in capsys.readouterr().out


def test_a_copy_has_a_rate() -> None:
    assert copy_rate(torch.device("cpu")) > 1e8
