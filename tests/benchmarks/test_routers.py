"""The three-router benchmark: what it asks and how it counts, then all of it against a real server."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import httpx
import pytest

from benchmarks.copied_store import NotMeasurable
from benchmarks.routed_answers import (
    ROUTERS,
    Agreed,
    Answered,
    Failed,
    Questions,
    ask_all,
    in_turns,
    mixed,
    own_experts,
)
from benchmarks.router_report import Times, line
from benchmarks.routers import main
from tests.support.three_routers import ThreeRouters, make_three_routers
from training.evaluate.stream import Sample, Task


def sample(number: int, task: str = "jump") -> Sample:
    return Sample(f"{task}/{number}", task, f"the {task} {number}", f"{task} one")


TASKS = [Task(name, (), tuple(sample(number, name) for number in range(3))) for name in ("jump", "lazy")]


def answered(task: str, leader: str | None, *, seen: tuple[str, ...] = (), rouge: float = 50.0) -> Answered:
    return Answered(
        router="chain",
        sample=f"{task}/0",
        task=task,
        leader=leader,
        seen=frozenset(seen),
        fallback=leader is None,
        rouge_l=rouge,
        exact=0.0,
        routing_ms=1.0,
        first_token_ms=2.0,
        total_ms=3.0,
        computed_tokens=10,
    )


def test_rows_are_mixed_the_same_for_a_seed_and_none_comes_twice_before_all_have() -> None:
    rows = mixed(TASKS, 9, seed=1)
    assert rows == mixed(TASKS, 9, seed=1) != mixed(TASKS, 9, seed=2)
    assert len(set(rows[:6])) == 6
    assert len(rows) == 9
    assert [row.task for row in rows[:6]] not in (["jump"] * 3 + ["lazy"] * 3, ["lazy"] * 3 + ["jump"] * 3)


def test_every_row_is_asked_under_every_router_and_each_router_comes_first_as_often() -> None:
    rows = [sample(number) for number in range(8)]
    turns = in_turns(rows)
    assert [row for _, row in turns] == [row for row in rows for _ in ROUTERS]
    for number in range(8):
        assert sorted(router for router, _ in turns[4 * number : 4 * number + 4]) == sorted(ROUTERS)
    assert Counter(router for router, _ in turns[::4]) == dict.fromkeys(ROUTERS, 2)


def test_shares_are_over_the_rows_they_mean_something_for() -> None:
    answers = [
        answered("jump", "u-jump", seen=("u-jump",), rouge=100.0),
        answered("jump", "other", seen=("other",), rouge=0.0),
        answered("lazy", "other", seen=("other",), rouge=20.0),
        answered("pe", None, rouge=40.0),
    ]
    shadows = [Agreed("gradient", True, 5.0), Agreed("gradient", False, 7.0), Agreed("gradient", None, 900.0)]
    made = line("gradient", answers, shadows, own={"jump": "u-jump", "lazy": "never-asked"}, num_failed=1)
    assert (made.own, made.own_rows) == (0.5, 2)
    assert (made.by_experts, made.fallback, made.agreed, made.failed) == (0.75, 0.25, 0.5, 1)
    assert (made.rouge_l, made.rouge_l_by_task) == (40.0, {"jump": 50.0, "lazy": 20.0, "pe": 40.0})
    assert made.shadow_ms == Times(6.0, 6.9)
    alone = line("none", answers[3:], [], own={}, num_failed=0)
    assert (alone.own, alone.own_rows, alone.agreed, alone.shadow_ms) == (None, 0, None, None)
    with pytest.raises(NotMeasurable, match="none of the 3"):
        line("none", [], [], own={}, num_failed=3)


def test_own_experts_are_found_by_name_unless_they_are_given() -> None:
    pool = ["u-jump", "mix-lazy", "old-lazy", "sa", "other"]
    assert own_experts(["jump", "lazy", "sa"], {}, pool) == {"jump": "u-jump", "sa": "sa"}
    assert own_experts(["jump", "lazy"], {"lazy": "other"}, pool) == {"jump": "u-jump", "lazy": "other"}
    for given in ({"jump": "nobody"}, {"pe": "other"}):
        with pytest.raises(NotMeasurable, match="--own"):
            own_experts(["jump"], given, pool)


def answering(response: httpx.Response) -> Questions:
    transport = httpx.MockTransport(lambda _: response)
    return Questions(httpx.Client(transport=transport, base_url="http://fake"), answer_tokens=4)


def test_a_router_that_is_not_ready_any_more_ends_everything_at_once() -> None:
    asked: list[str] = []
    questions = answering(httpx.Response(409, json={"error": {"message": "router learned is not ready: run x"}}))

    def ask(router: str) -> Answered | Failed:
        asked.append(router)
        return questions.answer("learned", sample(0))

    with pytest.raises(NotMeasurable, match="router learned is not ready"):
        list(ask_all(ask, ["learned"] * 1000, concurrency=2, on_done=lambda: None))
    assert len(asked) < 1000


def test_whatever_else_goes_wrong_is_counted() -> None:
    failed = answering(httpx.Response(500, text="boom")).answer("gradient", sample(0))
    assert failed == Failed("gradient", "status 500: boom")
    assert isinstance(answering(httpx.Response(503)).shadows(sample(0)), Failed)


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


def arguments(pool: ThreeRouters, data: Path, *more: str) -> list[str]:
    where = ["--store", pool.store, "--data", data, "--base", pool.base_folder, "--cache", pool.cache]
    sizes = ["--tasks", "jump,lazy", "--prompts", "input", "--requests", "10", "--concurrency", "3"]
    return [*map(str, where), *sizes, "--server=--dtype fp32 --kv-memory 64MiB --threads 1", *more]


def test_four_columns_are_measured_and_written_and_the_store_stays_as_it_was(
    three_routers: ThreeRouters, task_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(three_routers.store)
    own = ["--own", "jump=mix-jump,lazy=mix-lazy"]
    assert main(arguments(three_routers, task_data, *own, "--label", "tiny"), results=tmp_path) == 0
    assert digest(three_routers.store) == before
    printed = capsys.readouterr().out
    for shown in ("ROUGE-L", "chain", "gradient", "learned", "none", "led by the chain's expert"):
        assert shown in printed
    result = json.loads((tmp_path / "tiny.json").read_text())
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")
    chain, gradient, learned, none = result["routers"]
    rows = [answer["task"] for answer in result["answers"] if answer["router"] == "chain"]
    assert (len(rows), len(result["answers"]), result["failures"]) == (10, 40, [])
    assert (chain["by_experts"], chain["fallback"], chain["own"]) == (1.0, 0.0, None)
    assert {answer["leader"] for answer in result["answers"] if answer["router"] == "chain"} == {"u-jump"}
    assert (gradient["own"], gradient["own_rows"], gradient["agreed"]) == (1.0, 10, 0.0)
    assert learned["own"] == pytest.approx(rows.count("jump") / 10)
    assert (none["by_experts"], none["fallback"], none["own"], none["agreed"]) == (0.0, 0.0, None, None)
    assert gradient["computed_tokens"] > learned["computed_tokens"] > none["computed_tokens"]
    for router in result["routers"]:
        assert 0 < router["first_token_ms"]["p50"] <= router["first_token_ms"]["p95"]
        assert router["first_token_ms"]["p50"] <= router["total_ms"]["p50"]
        assert set(router["rouge_l_by_task"]) == set(rows)


def test_a_store_without_a_trained_router_is_told_what_to_run(
    task_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = make_three_routers(tmp_path, learned=False)
    assert main(arguments(pool, task_data, "--label", "tiny"), results=tmp_path / "results") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "router learned is not ready: no router has been trained for this pool: run `relay train router" in printed
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--store", "/nowhere"], "is no expert store"),
        (["--tasks", "jump,nothing"], "jump, lazy, each once"),
        (["--own", "jump=nobody"], "--own: nobody"),
    ],
)
def test_what_is_not_there_is_named(
    wrong: list[str],
    says: str,
    three_routers: ThreeRouters,
    task_data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*arguments(three_routers, task_data), *wrong]) == 1
    assert says in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("wrong", [["--requests", "0"], ["--own", "jump"], ["--budget", "huge"], ["--prompts", "all"]])
def test_options_that_make_no_sense_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["--store", "s", "--data", "d", *wrong])
    assert refused.value.code == 2
