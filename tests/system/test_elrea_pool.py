"""From mixed rows to a mixture: one command trains and registers a pool, and a running server routes by gradient."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.server import RelayServer
from tests.support.tiny import write_base
from training.commands import app

pytestmark = pytest.mark.slow
TOPICS = ("the quick brown fox jumps {}", "What is the capital of France? {}")


def train(root: Path, url: str, prefix: str, *options: str) -> str:
    rows = [{"id": i, "input": TOPICS[i % 2].format(i), "output": ("dogs", "Paris")[i % 2]} for i in range(12)]
    (root / "mixed.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    command = ["elrea", "--data", root / "mixed.jsonl", "--out", root / prefix, "--base", root / "base"]
    more = ["--cache", root, "--device", "cpu", "--rank", "2", "--batch-size", "6", "--clusters", "2", "--lr", "1e-2"]
    last = ["--width", "512", "--register", prefix, "--url", url, *options]
    result = CliRunner().invoke(app, [str(part) for part in (*command, *more, *last)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_trained_pool_answers_and_the_next_one_takes_over(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    flags = ("--dtype", "fp32", "--no-demo", "--kv-memory", "64MiB", "--threads", "1")
    with RelayServer(store=tmp_path / "store", base=str(base), log=tmp_path / "log", flags=flags) as server:
        assert "ready" in train(tmp_path, server.url, "mix")
        leaders = []
        for topic in TOPICS:
            answer = server.post("/generate", {"prompt": topic.format(1), "router": "gradient", "max_new_tokens": 4})
            assert answer["routing"]["reason"] == "weighted"
            leaders.append(answer["routing"]["experts"][0]["expert"])
        assert sorted(leaders) == ["mix-0", "mix-1"]

        assert "mix-base no longer is the base adapter" in train(tmp_path, server.url, "next", "--seed", "1")
        routing = server.post("/route", {"prompt": "hi", "router": "gradient"})["routing"]
        assert {share["expert"] for share in routing["experts"]} == {"next-0", "next-1"}
        assert server.get("/experts/mix-base")["aliases"] == {"live": 1}
        [listed] = [router for router in server.get("/routers")["routers"] if router["router"] == "gradient"]
        assert listed["ready"]
