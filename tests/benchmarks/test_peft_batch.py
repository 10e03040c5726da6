"""PEFT's side of the comparison is PEFT, row by row; turns by hand; and all of it against a server on a tiny base."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.peft_batch import PeftBatch, Turn, main, record, take_turns
from benchmarks.serving.work import Job
from server.model.base import load_base
from tests.support import tiny


def test_every_row_of_the_batch_is_what_its_adapter_answers_alone(tmp_path: Path) -> None:
    folder = tiny.write_base(tmp_path / "base")
    adapters = {
        name: tiny.write_adapter(tmp_path / name, folder, kind="lora", seed=seed) for seed, name in enumerate("ab")
    }
    base = load_base(str(folder), dtype="fp32", cache=tmp_path)
    tokenizer = base.tokenizer
    todo = [Job("a", "the quick brown fox", 7), Job("b", "fox", 7), Job("a", "what is the capital", 7)]
    batch = PeftBatch(base, adapters)
    together = batch.generate(todo).tolist()
    assert batch.tokens_per_second(todo) > 0
    for job, row in zip(todo, together, strict=True):
        alone = tiny.oracle(folder, adapters[job.model], torch.float32)
        assert row == tiny.oracle_tokens(alone, tokenizer(job.prompt)["input_ids"], 7)
    assert together[0] != batch.generate([Job("b", todo[0].prompt, 7)]).tolist()[0]


def test_sides_take_turns_and_the_first_round_is_left_out() -> None:
    told: list[str] = []

    def side(name: str, rate: float) -> float:
        told.append(name)
        return rate

    measured = take_turns(
        lambda number: side(f"peft {number}", 10 * number),
        lambda number: side(f"server {number}", 40 * number),
        num_rounds=2,
        minutes=1,
        on_turn=lambda: None,
    )
    assert measured == [Turn(peft=10, server=40), Turn(peft=20, server=80)]
    assert told == ["server 0", "peft 0", "peft 1", "server 1", "server 2", "peft 2"]


def test_without_time_one_round_is_measured() -> None:
    measured = take_turns(lambda _: 1.0, lambda _: 2.0, num_rounds=9, minutes=0, on_turn=lambda: None)
    assert measured == [Turn(1.0, 2.0)]


def test_the_ratio_is_that_of_rounds() -> None:
    written = record([Turn(10, 20), Turn(40, 200), Turn(20, 60)], {})
    assert written["tokens_per_second"]["ratio"] == {"median": 3, "low": 2, "high": 5}
    assert written["tokens_per_second"]["peft"] == {"median": 20, "low": 10, "high": 40}


def test_both_sides_are_measured_and_everything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny.write_base(tmp_path / "base")
    sizes = ["--adapters", "2", "--rank", "2", "--requests", "3", "--prompt-words", "5", "--max-tokens", "4"]
    where = ["--base", str(base), "--cache", str(tmp_path / "cache"), "--rounds", "2", "--label", "tiny"]
    assert main([*sizes, *where], results=tmp_path) == 0
    assert "3 prompts of 5 words" in capsys.readouterr().out
    result = json.loads((tmp_path / "tiny.json").read_text())
    assert len(result["rounds"]) == 2
    assert all(turn["peft"] > 0 and turn["server"] > 0 for turn in result["rounds"])
    assert {"commit", "machine", "command", "options"} <= set(result)
