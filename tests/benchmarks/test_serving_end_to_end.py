"""The load generator against a real server on a tiny base: what it prints, writes and returns."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving.__main__ import main
from tests.support import tiny
from tests.support.server import RelayServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayServer]:
    root = tmp_path_factory.mktemp("load")
    base = tiny.write_base(root / "base")
    adapter = tiny.write_adapter(root / "adapter", base, kind="lora")
    flags = ("--dtype", "fp32", "--no-demo", "--kv-memory", "64MiB")
    with RelayServer(store=root / "store", base=str(base), log=root / "log", flags=flags) as running:
        for name in ("one", "two"):
            running.register(adapter, name, {})
        yield running


def test_two_sides_take_turns_and_everything_is_written(
    server: RelayServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--url", server.url, "--models", "one,two", "--against", server.url, "--against-models", "base,one"]
    sizes = ["--concurrency", "3", "--requests", "5", "--rounds", "2", "--prompt-words", "8", "--max-tokens", "6"]
    assert main([*arguments, *sizes, "--label", "tiny"], results=tmp_path) == 0
    assert "ratio" in capsys.readouterr().out
    result = json.loads((tmp_path / "tiny.json").read_text())
    assert result["command"].startswith("python -m benchmarks.serving --url http")
    assert (result["options"]["seed"], result["options"]["popularity"]) == (1, "distinct")
    assert {"commit", "machine", "versions"} <= set(result)
    assert [(side["name"], side["models"]) for side in result["sides"]] == [
        ("relay", ["one", "two"]),
        ("peer", ["base", "one"]),
    ]
    for side in result["sides"]:
        assert len(side["rounds"]) == 2
        assert side["failures"] == {}
        for figures in side["rounds"]:
            assert all(value > 0 for value in figures.values())
            assert figures["first_token_p50"] <= figures["first_token_p95"]
    rates = [[figures["tokens_per_second"] for figures in side["rounds"]] for side in result["sides"]]
    pairs = sorted(ours / theirs for ours, theirs in zip(*rates, strict=True))
    assert result["ratio"]["tokens_per_second"]["low"] == pytest.approx(pairs[0])
    assert result["ratio"]["tokens_per_second"]["high"] == pytest.approx(pairs[1])
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")
    metrics = server.client.get(server.url + "/metrics").text
    assert 'lora_relay_requests_total{endpoint="completions",outcome="length"} 30.0' in metrics


def test_requests_that_fail_are_told_and_make_the_exit_status(
    server: RelayServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--concurrency", "2", "--requests", "4", "--rounds", "1", "--prompt-words", "3", "--max-tokens", "2"]
    assert main(["--url", server.url, "--models", "one,nobody", *sizes], results=tmp_path) == 1
    assert "2 x BrokenStream: status 404" in capsys.readouterr().out
    assert main(["--url", server.url, "--models", "nobody", *sizes], results=tmp_path) == 1
    assert "every request failed" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        ["--models", "a,"],
        ["--models", "a", "--max-tokens", "1"],
        ["--models", "a", "--concurrency", "0"],
        ["--models", "a", "--template", "no words"],
        ["--models", "a", "--against", "http://x", "--against-models", "a,b"],
        ["--models", "a", "--against", "http://x", "--against-name", "relay"],
        ["--models", "a", "--label", "../elsewhere"],
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(wrong)
    assert refused.value.code == 2
