"""What features cost other requests: measured against a real server on a tiny base, and written."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks import gradient_cost
from benchmarks.gradient_cost import Phase, main
from tests.support.clocks import HeldTime
from tests.support.three_routers import ThreeRouters


@pytest.fixture
def three_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded phase does not end before there have been three, however slow they are here."""
    clock, made = HeldTime(), list[str]()
    feature, run_phase = gradient_cost._feature, gradient_cost.run_phase

    async def counted(client: httpx.AsyncClient, prompt: str) -> None:
        await feature(client, prompt)
        made.append(prompt)

    async def held(
        client: httpx.AsyncClient, prompts: Iterator[str], given: argparse.Namespace, *, loaded: bool
    ) -> Phase:
        before = len(made)
        clock.begin_phase(given.seconds, enough=lambda: not loaded or len(made) >= before + 3)
        return await run_phase(client, prompts, given, loaded=loaded)

    monkeypatch.setattr(gradient_cost, "time", clock)
    monkeypatch.setattr(gradient_cost, "_feature", counted)
    monkeypatch.setattr(gradient_cost, "run_phase", held)


@pytest.mark.usefixtures("three_features")
def test_quiet_and_loaded_take_turns_and_everything_is_written(
    three_routers: ThreeRouters, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--store", three_routers.store, "--base", three_routers.base_folder, "--cache", three_routers.cache]
    sizes = ["--streams", "2", "--seconds", "1", "--rounds", "2", "--prompt-words", "6", "--max-tokens", "8"]
    server = ["--server=--dtype fp32 --kv-memory 64MiB --threads 1"]
    assert main([*map(str, where), *sizes, *server, "--label", "tiny"], results=tmp_path) == 0
    assert "beside features" in capsys.readouterr().out
    result = json.loads((tmp_path / "tiny.json").read_text())
    ratios = []
    for pair in result["rounds"]:
        quiet, loaded = pair["quiet"], pair["loaded"]
        assert quiet["features"] == []
        assert len(loaded["features"]) > 2
        for phase in (quiet, loaded):
            assert phase["failures"] == {}
            assert 0 < phase["gap_p50"] <= phase["gap_p95"]
        ratios.append(loaded["gap_p95"] / quiet["gap_p95"])
    spread = result["ratio"]["gap_p95"]
    assert (spread["low"], spread["high"]) == (pytest.approx(min(ratios)), pytest.approx(max(ratios)))


@pytest.mark.parametrize("wrong", [["--max-tokens", "1"], ["--streams", "0"], ["--label", "a/b"]])
def test_options_that_make_no_sense_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["--store", "s", *wrong])
    assert refused.value.code == 2
