"""The stream: what is trained on and asked, orders, prompts, memory, mistakes; and the book of answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.errors import InvalidData, InvalidRun
from training.evaluate.adapters import Averaged, Ewc, SeeExpert, TunedLora
from training.evaluate.answerers import ByTask, Chain, OneAdapter
from training.evaluate.asking import Book
from training.evaluate.bench import _task_of_key
from training.evaluate.budget import BUDGETS
from training.evaluate.methods import METHODS
from training.evaluate.stream import GENERAL, Setting, read_settings, shorten
from training.evaluate.units import Workshop

BUDGET = replace(BUDGETS["small"], rows=20, held_out=4)


def settings(data: Path, *names: str, **more: Any) -> list[Setting]:
    return read_settings(data, names, BUDGET, **{"prompts": ["definition"], "orders": [0], "seeds": [0], **more})


def test_every_combination_is_a_setting_and_unseen_tasks_stay_unseen(data: Path) -> None:
    found = settings(data, "lazy", "jump", prompts=["definition", "input"], orders=[0, 3], seeds=[0, 1])
    assert len({(setting.prompts, setting.order, setting.seed) for setting in found}) == 8
    first = found[0]
    assert [task.name for task in first.tasks] == ["lazy", "jump"]
    assert [len(task.train) for task in first.tasks] == [20, 20]
    assert [len(task.held_out) for task in first.tasks] == [4, 4]
    assert first.tasks[0].train[0].prompt == "Say dog.\n\nthe lazy 0"
    assert found[4].tasks[0].train[0].prompt == "the lazy 0"
    assert {sample.task for sample in first.strangers} == {"paris", GENERAL}
    trained = {sample.prompt for task in first.tasks for sample in task.train}
    assert trained.isdisjoint(sample.prompt for task in first.tasks for sample in task.held_out)
    assert {s.prompt for s in first.general}.isdisjoint(s.prompt for s in first.strangers)


def test_orders_are_shuffles_that_come_again(data: Path) -> None:
    names = ["jump", "lazy", "paris"]
    orders = {n: [t.name for t in settings(data, *names, orders=[n])[0].tasks] for n in range(8)}
    assert orders[0] == names
    assert all(sorted(order) == names for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) > 2
    assert orders[5] == [t.name for t in settings(data, *names, orders=[5], seeds=[9])[0].tasks]


def test_the_memory_is_a_tenth_of_every_earlier_task(data: Path) -> None:
    setting = settings(data, "lazy", "jump", "paris")[0]
    assert setting.memory(0) == ()
    assert [sample.task for sample in setting.memory(2)] == ["lazy", "lazy", "jump", "jump"]
    assert setting.memory(1) == setting.memory(2)[:2]
    wider = setting.memory(2, at_least=5)
    assert [sample.task for sample in wider] == ["lazy"] * 5 + ["jump"] * 5
    assert len(setting.memory(1, at_least=99)) == len(setting.tasks[0].train)


def test_long_prompts_lose_their_middle() -> None:
    text = "first " + "middle " * 100 + "last?"
    short = shorten(text, 60)
    assert len(short) <= 60
    assert short.startswith("first middle")
    assert short.endswith("middle last?")
    assert " ... " in short
    assert shorten("short", 60) == "short"
    assert len(shorten("x" * 100, 60)) == 60


def test_mistakes_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRun, match=r"--tasks lazy,sleep: .* has jump, lazy, paris"):
        settings(data, "lazy", "sleep")
    row = {"id": "1", "definition": "d", "input": "i", "output": "o"}
    (tmp_path / "a.train.jsonl").write_text(json.dumps(row) + "\n{}\n" + json.dumps(row) + "\n[1]")
    (tmp_path / "a.eval.jsonl").write_text(json.dumps(row))
    with pytest.raises(
        InvalidData, match=r"line 2: needs the strings id.*\n.*line 3: id 'a/1' is used twice\n.*line 4: not a JSON obj"
    ):
        settings(tmp_path, "a")
    (tmp_path / "a.train.jsonl").write_text(json.dumps(row))
    with pytest.raises(InvalidRun, match="each of its rows is a training row as well"):
        settings(tmp_path, "a")


def test_prompts_may_hold_any_line_separator(tmp_path: Path) -> None:
    for part, text in (("train", "a\u2028b"), ("eval", "c\x85d")):
        row = {"id": "1", "definition": "d", "input": text, "output": "o"}
        (tmp_path / f"a.{part}.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (task,) = settings(tmp_path, "a")[0].tasks
    assert [sample.prompt for sample in (*task.train, *task.held_out)] == ["d\n\na\u2028b", "d\n\nc\x85d"]


# --- methods ---


def test_chains_ask_the_newest_first_and_experts_know_only_earlier_tasks(data: Path) -> None:
    setting = settings(data, "lazy", "jump")[0]
    final = METHODS["see"].stages(setting)[-1]
    assert isinstance(final, Chain)
    newest, oldest = final.order
    assert isinstance(newest, SeeExpert)
    assert isinstance(oldest, SeeExpert)
    assert (newest.task, oldest.task) == ("jump", "lazy")
    assert {sample.task for sample in oldest.negatives} == {GENERAL}
    assert {sample.task for sample in newest.negatives} == {GENERAL, "lazy"}


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.routed])
def test_whoever_may_answer_is_known_by_the_task_it_is_for(data: Path, workshop: Workshop, method: str) -> None:
    setting = settings(data, "lazy", "jump")[0]
    final = METHODS[method].stages(setting)[-1]
    assert final is not None
    tasks = list(_task_of_key(final, workshop).values())
    assert sorted(tasks) == ["jump", "lazy"]


def test_the_oracle_names_the_chains_own_experts(data: Path) -> None:
    setting = settings(data, "lazy", "jump")[0]
    named = METHODS["oracle"].stages(setting)[-1]
    assert isinstance(named, ByTask)
    assert [unit.name for unit in named.units] == ["see-lora-lazy", "see-lora-jump"]


@pytest.mark.parametrize(
    ("method", "kind"), [("sequential", type(None)), ("rehearsal", type(None)), ("ewc", Ewc), ("sfa-0.25", Averaged)]
)
def test_each_stage_starts_from_the_one_before(data: Path, method: str, kind: type) -> None:
    setting = settings(data, "lazy", "jump", "paris")[0]
    units = [stage.unit for stage in METHODS[method].stages(setting) if isinstance(stage, OneAdapter)]
    tuned = [unit for unit in units if isinstance(unit, TunedLora)]
    assert len(tuned) == 3
    assert [unit.start for unit in tuned] == [None, *tuned[:-1]]
    assert tuned[0].hold is None
    assert all(type(unit.hold) is kind for unit in tuned[1:])
    assert [len(unit.rows) for unit in tuned] == ([20, 22, 24] if method == "rehearsal" else [20, 20, 20])
    if method == "ewc":
        assert isinstance(tuned[2].hold, Ewc)
        assert tuned[2].hold.importance.before is tuned[1].hold.importance  # type: ignore[union-attr]


# --- the book ---


def test_nothing_is_asked_twice_and_half_a_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    asked: list[str] = []

    def ask(text: str) -> dict[str, Any]:
        asked.append(text)
        return {"text": text}

    book = Book(path)
    assert [book.look_up(key, lambda key=key: ask(key)) for key in "aba"] == [
        {"text": "a"},
        {"text": "b"},
        {"text": "a"},
    ]
    with path.open("a") as file:
        file.write('\n{"key": "c", "val')
    again = Book(path)
    assert (again.holds("a"), again.holds("c")) == (True, False)
    for key in "abc":
        again.look_up(key, lambda key=key: ask(key))
    assert asked == ["a", "b", "c"]
    assert all(Book(path).holds(key) for key in "abc")


def test_an_answer_may_hold_any_line_separator(tmp_path: Path) -> None:
    said = {"text": "one\u2028two\u2029three\x85four"}
    Book(tmp_path / "answers.jsonl").look_up("a", lambda: said)
    again = Book(tmp_path / "answers.jsonl")
    assert again.holds("a")
    assert again.look_up("a", dict) == said
