"""The chain benchmark: its statistics by hand, its checks, and all of it against a server on a tiny base."""

import json
from itertools import count, islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.chain import (
    ACCEPTS,
    REJECTS,
    Asked,
    Curve,
    Pair,
    Point,
    SteeringFailed,
    chain_order,
    check,
    drafts,
    fresh_prompts,
    main,
    measure,
    pool_sizes,
)
from benchmarks.serving.statistics import Spread
from server.model.base import load_base
from server.model.chat import ChatFormat
from tests.support import tiny


def asked(seconds: float) -> Asked:
    return Asked(seconds, routing_seconds=seconds / 2, prompt_tokens=200, computed_tokens=240)


def routing(expert: str | None, reason: str, considered: list[str]) -> dict[str, Any]:
    asked = [{"expert": name, "accepted": name == expert} for name in considered]
    return {"expert": expert, "reason": reason, "considered": asked}


def test_ratios_are_those_of_pairs() -> None:
    times = [(2, 1), (12, 3), (9, 3)]
    point = Point("activated", 8, tuple(Pair(asked(chained), asked(named)) for chained, named in times))
    assert point.ratio == Spread(3, 2, 4)
    assert point.over_pairs(lambda pair: pair.chained.seconds) == Spread(9, 2, 12)


def test_the_last_of_every_chain_is_the_only_one_whose_threshold_accepts() -> None:
    assert chain_order("plain", 3) == ["plain-0002", "plain-0001", "plain-0000"]
    assert chain_order("plain", 1) == ["plain-0000"]
    thresholds = {name: draft.threshold for name, draft in drafts("plain", 3).items()}
    assert thresholds == {"plain-0000": ACCEPTS, "plain-0001": REJECTS, "plain-0002": REJECTS}


def test_a_pool_is_as_large_as_its_longest_chain() -> None:
    assert pool_sizes([Curve("activated", (1, 8)), Curve("plain", (2,))]) == {"activated": 8, "plain": 2}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (routing("b", "accepted", ["a", "b"]), "'b'"),
        (routing(None, "no_acceptance", ["b", "a"]), "no_acceptance"),
        (routing("a", "accepted", ["a"]), "1"),
    ],
)
def test_an_answer_that_was_not_to_be_measured_is_told(answer: dict[str, Any], told: str) -> None:
    check(routing("a", "accepted", ["b", "a"]), expert="a", reason="accepted", num_asked=2)
    with pytest.raises(SteeringFailed, match=told):
        check(answer, expert="a", reason="accepted", num_asked=2)


def test_prompts_are_new_and_have_the_tokens_that_were_asked_for(tmp_path: Path) -> None:
    base = load_base(str(tiny.write_base(tmp_path / "base")), dtype="fp32", cache=tmp_path)
    chat = ChatFormat(base.tokenizer)
    prompts = list(islice(fresh_prompts(chat, 60, seed=1), 20))
    assert len(set(prompts)) == 20
    lengths = [len(chat.render([{"role": "user", "content": prompt}]).tokens) for prompt in prompts]
    assert all(55 <= length <= 60 for length in lengths)  # a word of the tiny tokenizer has several tokens
    assert prompts == list(islice(fresh_prompts(chat, 60, seed=1), 20))


class FakeServer:
    """Answers as the chain would: the last of the order accepts, unless another one is told to."""

    def __init__(self, *, accepting: str | None = None) -> None:
        self.accepting = accepting
        self.order: list[str] = []
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/chain":
            self.order = body["order"]
            return httpx.Response(200, json={})
        self.bodies.append(body)
        named = body.get("expert")
        answered = (
            routing(named, "pinned", []) if named else routing(self.accepting or self.order[-1], "accepted", self.order)
        )
        usage = {"prompt_tokens": 200, "computed_tokens": 200 + 5 * len(answered["considered"])}
        return httpx.Response(200, json={"routing": answered, "usage": usage, "timings": {"routing_ms": 7.0}})


def measured(server: FakeServer, *, num_pairs: int = 3, minutes: float = 1) -> list[Point]:
    with httpx.Client(transport=httpx.MockTransport(server), base_url="http://fake") as client:
        curves = [Curve("activated", (1, 4))]
        prompts = map(str, count())
        return measure(client, curves, prompts, num_pairs=num_pairs, minutes=minutes, on_pair=lambda: None)


def test_pairs_take_turns_at_going_first_and_no_prompt_is_sent_twice() -> None:
    server = FakeServer()
    one, four = measured(server)
    assert (len(one.pairs), len(four.pairs)) == (3, 3)
    assert [pair.chained.computed_tokens for pair in four.pairs] == [220] * 3
    assert [pair.named.computed_tokens for pair in four.pairs] == [200] * 3
    assert ["expert" in body for body in server.bodies] == [False, True, False, True, True, False, True, False] * 2
    assert len({body["prompt"] for body in server.bodies}) == len(server.bodies) == 16
    assert all((body["max_new_tokens"], body["ignore_eos"]) == (1, True) for body in server.bodies)


def test_without_time_one_round_is_measured() -> None:
    assert [len(point.pairs) for point in measured(FakeServer(), num_pairs=50, minutes=0)] == [1, 1]


def test_an_expert_that_accepts_against_its_threshold_ends_the_run() -> None:
    with pytest.raises(SteeringFailed, match="activated-0001"):
        measured(FakeServer(accepting="activated-0001"))


def test_a_server_on_a_tiny_base_is_measured_and_everything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tiny.write_base(tmp_path / "base")
    base = ["--base", str(written), "--cache", str(tmp_path / "cache"), "--prompt-tokens", "60", "--rank", "2"]
    curves = ["--curve", "activated=1,3", "--curve", "plain=2", "--pairs", "2", "--chain-window", "2"]
    assert main([*base, *curves, "--label", "tiny"], results=tmp_path) == 0
    assert "Time to first token, windows of 2" in capsys.readouterr().out
    result = json.loads((tmp_path / "tiny.json").read_text())
    assert result["command"].endswith("--label tiny")
    points = result["points"]
    assert [(one["curve"], one["num_experts"]) for one in points] == [("activated", 1), ("activated", 3), ("plain", 2)]
    assert [len(one["pairs"]) for one in points] == [2, 2, 2]
    one, three, plain = ([pair["chained"]["computed_tokens"] for pair in point["pairs"]] for point in points)
    assert max(one) < min(three) < 100 <= min(plain)  # a few tokens for each activated one, a prompt for each plain one
    for point in points:
        assert point["ratio"]["low"] <= point["ratio"]["median"] <= point["ratio"]["high"]
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--curve", "nobody=1"],
        ["--curve", "plain=0"],
        ["--curve", "plain=1", "--curve", "plain=2"],
        ["--pairs", "0"],
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(wrong)
    assert refused.value.code == 2
