"""Divergences are what they are by hand, fp32's own are none, and the record holds what was measured."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.rounding import Cost, Difference, Reference, difference, main
from server.model.native import load_kernels
from tests.support import tiny


def test_a_divergence_is_from_the_reference_and_only_its_own_tokens_count_as_same() -> None:
    certain, even = [0.9, 0.1], [0.5, 0.5]
    reference = Reference([1], [0, 1], torch.tensor([certain, even]).log())
    found = difference(reference, torch.tensor([even, certain]).log())
    assert found.divergence == pytest.approx([0.9 * math.log(1.8) + 0.1 * math.log(0.2), math.log(1 / 0.6)])
    assert difference(reference, reference.logarithm_TV).divergence == pytest.approx([0, 0], abs=1e-7)
    assert found.same == [True, False]


def test_an_answer_is_the_same_where_all_of_its_tokens_are() -> None:
    cost = Cost.of("bf16", [Difference([0.0, 0.2], [True, False]), Difference([0.1], [True])])
    assert (cost.tokens, cost.answers) == (3, 2)
    assert cost.same_tokens == pytest.approx(2 / 3)
    assert cost.same_answers == 0.5
    assert cost.mean_divergence == pytest.approx(0.1)


def test_fp32_does_not_differ_and_each_rounding_more_than_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dtypes = ["fp32", "bf16"] if load_kernels(tmp_path) is None else ["fp32", "bf16", "int8"]
    folder = tiny.write_base(tmp_path / "base")
    flags = ["--base", str(folder), "--cache", str(tmp_path), "--prompts", "2", "--max-tokens", "6"]
    assert main([*flags, "--label", "tried", "--dtypes", *dtypes], results=tmp_path) == 0
    costs = json.loads((tmp_path / "tried.json").read_text())["costs"]
    assert [cost["dtype"] for cost in costs] == dtypes
    assert {cost["answers"] for cost in costs} == {12}
    divergences = [cost["mean_divergence"] for cost in costs]
    assert divergences == sorted(divergences)
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert divergences[1] > 1e-6
    assert costs[0]["same_answers"] == 1
    assert "same answer" in capsys.readouterr().out


def test_a_base_that_cannot_be_int8_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.write_base(tmp_path / "base", "gpt2")
    flags = ["--base", str(folder), "--cache", str(tmp_path), "--prompts", "1", "--max-tokens", "2"]
    assert main([*flags, "--dtypes", "int8"], results=tmp_path) == 1
    assert "--dtype int8" in capsys.readouterr().out
