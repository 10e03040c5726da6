"""What features cost other requests: measured against a real server on a tiny base, and written."""

import json
from pathlib import Path

import pytest

from benchmarks.gradient_cost import main
from tests.support.three_routers import ThreeRouters


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
