"""What the recipe refuses to train on, and how rows become tokens and steps."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from expert_store import Indicators
from server.model.base import Base, load_base
from server.model.chat import ChatFormat
from tests.support.tiny import write_base
from training.batches import Collator, plan_steps
from training.data import (
    DataFile,
    Encoder,
    Row,
    digest_files,
    digest_roles,
    read_rows,
    refuse_contradictions,
    refuse_seen,
    split_holdout,
    split_lines,
)
from training.errors import InvalidData
from training.memory import read_memory
from training.selection import read_data

LONG = "the lazy dog " * 60


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = write_base(tmp_path_factory.mktemp("base"))
    return load_base(str(folder), dtype="fp32", device="cpu", cache=folder)


@pytest.fixture(scope="module")
def encoder(base: Base) -> Encoder:
    chat = ChatFormat(base.tokenizer)
    return Encoder(chat, chat.indicator_tokens(Indicators()), eos=1, max_tokens=200)


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_file(inputs: Sequence[str], *, answers: bool = True) -> DataFile:
    rows = [Row(str(i), text, f"answer {i}" if answers else None, i + 1) for i, text in enumerate(inputs)]
    return DataFile(Path("rows.jsonl"), tuple(rows))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": 1, "input": "x"}', '"output" is missing'),
        ('{"id": 1, "input": "x", "output": " "}', '"output" is empty'),
        ('{"id": 1, "input": "x", "output": null}', '"output" is missing'),
        ('{"id": 1, "input": "x", "output": 3}', '"output" must be a string, not int'),
        ('{"id": 1, "input": "", "output": "y"}', '"input" is empty'),
        ('{"id": 1, "output": "y"}', '"input" is missing'),
        ('{"input": "x", "output": "y"}', 'needs an "id"'),
        ('{"id": true, "input": "x", "output": "y"}', 'needs an "id"'),
        ('{"id": 0, "input": "x", "output": "y"}', "id '0' is already used in line 1"),
        ('{"id": 1, "input": "x", "output": "y", "definition": 5}', '"definition" must be a string, not int'),
        ('{"id": 1, "input": ', "not valid JSON: Expecting value at column 20"),
        ('["x", "y"]', "not a JSON object"),
        (f'{{"id": {"1" * 5000}, "input": "x", "output": "y"}}', "cannot be read: Exceeds the limit"),
        ('{"id": 1, "input": ' + "[" * 100_000, "cannot be read: maximum recursion depth"),
        (r'{"id": 1, "input": "\ud800", "output": "y"}', "holds half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_reason(tmp_path: Path, line: str, reason: str) -> None:
    path = write_lines(tmp_path / "rows.jsonl", ['{"id": 0, "input": "a", "output": "b"}', "", line])
    with pytest.raises(InvalidData) as caught:
        read_rows(path, answers=True)
    ((number, found),) = caught.value.problems
    assert number == 3
    assert found.startswith(reason)
    assert f"line 3: {reason}" in caught.value.message


def test_every_bad_line_is_reported_at_once(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", ["{}"] * 30)
    with pytest.raises(InvalidData, match="and 10 more") as caught:
        read_rows(path, answers=True)
    assert len(caught.value.problems) == 30


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00"])
def test_an_empty_or_unreadable_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidData, match=r"the file is empty|cannot be read as UTF-8"):
        read_rows(path, answers=True)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl", answers=True)


def test_negatives_need_no_output_and_lose_the_one_they_have(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "n.jsonl", ['{"id": 1, "input": "x"}', '{"id": 2, "input": "y", "output": "z"}'])
    assert [row.output for row in read_rows(path, answers=False).rows] == [None, None]


def test_a_definition_goes_before_the_input(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "rows.jsonl", [json.dumps({"id": 1, "definition": "Do it.", "input": "x", "output": "y"})]
    )
    assert read_rows(path, answers=True).rows[0].input == "Do it.\n\nx"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_a_newline_ends_a_line(tmp_path: Path, end: str) -> None:
    path = tmp_path / "rows.jsonl"
    texts = ["a\u2028b", "c\u2029d", "e\x85f"]
    records = [{"id": i, "expert": "e", "input": text, "output": text} for i, text in enumerate(texts)]
    path.write_bytes("".join(json.dumps(record, ensure_ascii=False) + end for record in records).encode())
    assert [(row.input, row.line) for row in read_rows(path, answers=True).rows] == [
        *zip(texts, (1, 2, 3), strict=True)
    ]
    assert dict(read_memory(path, ["e"]).expert_of) == {"0": 0, "1": 0, "2": 0}


@pytest.mark.parametrize(
    ("text", "lines"), [("", []), ("a", ["a"]), ("a\n", ["a"]), ("a\r\n\nb\r\n", ["a", "", "b"]), ("\n", [""])]
)
def test_lines_are_those_of_the_standard_library_where_these_characters_are_not(text: str, lines: list[str]) -> None:
    assert split_lines(text) == lines == text.splitlines()


def test_an_input_cannot_be_accepted_and_rejected() -> None:
    with pytest.raises(InvalidData, match=r"line 2: the same input is accepted in rows\.jsonl line 1"):
        refuse_contradictions(make_file(["a", "b"]), [make_file(["c", "a"], answers=False)])


def test_held_out_inputs_are_not_those_trained_on() -> None:
    held_out = make_file(["x", "b", "a"])
    trained = [make_file(["a"]), make_file(["c", "b"], answers=False)]
    with pytest.raises(InvalidData) as refused:
        refuse_seen(held_out, trained)
    assert [line for line, _ in refused.value.problems] == [2, 3]
    assert "line 2: the same input is trained on in rows.jsonl line 2: remove it" in refused.value.message
    refuse_seen(make_file(["x"]), trained)


@pytest.mark.parametrize(
    ("held_out_own", "held_out_negatives", "reason"),
    [
        ("new", "other 1", "the same input is trained on in .*negatives.jsonl line 2"),
        ("own 0", "new", "the same input is trained on in .*own.jsonl line 1"),
        ("other 0", "new", "the same input is trained on in .*negatives.jsonl line 1"),
        ("new", "new", "the same input is accepted in .*eval-own.jsonl line 1"),
    ],
)
def test_held_out_files_are_read_as_strictly(
    tmp_path: Path, held_out_own: str, held_out_negatives: str, reason: str
) -> None:
    inputs = {
        "own": ["own 0", "own 1"],
        "negatives": ["other 0", "other 1"],
        "eval-own": [held_out_own],
        "eval-negatives": [held_out_negatives],
    }
    own, negatives, eval_own, eval_negatives = (
        write_lines(
            tmp_path / f"{name}.jsonl",
            [json.dumps({"id": i, "input": text, "output": "y"}) for i, text in enumerate(texts)],
        )
        for name, texts in inputs.items()
    )
    with pytest.raises(InvalidData, match=reason):
        read_data(own, [negatives], answers=True, held_out_own=eval_own, held_out_negatives=eval_negatives)


def test_rows_over_the_token_limit_are_refused_by_line(encoder: Encoder) -> None:
    with pytest.raises(InvalidData, match=r"line 2: \d+ tokens, but at most 200 fit"):
        encoder.encode(make_file(["short", LONG]))


def test_targets_begin_with_an_indicator_and_end_with_the_end_of_sequence(base: Base, encoder: Encoder) -> None:
    accepted, rejected = encoder.encode(make_file(["x"]))[0], encoder.encode(make_file(["x"], answers=False))[0]
    texts = [base.tokenizer.decode(e.tokens[e.target_start :]) for e in (accepted, rejected)]
    assert texts == ["<<pos>> answer 0<|im_end|>", "<<neg>><|im_end|>"]
    assert accepted.tokens[: accepted.decision] == rejected.tokens[: rejected.decision]
    assert accepted.tokens[accepted.decision] != rejected.tokens[rejected.decision]
    assert accepted.frozen_length < accepted.target_start


def test_the_plan_uses_every_row_once_an_epoch_and_is_reproducible(encoder: Encoder) -> None:
    own = encoder.encode(make_file([f"own {'x ' * (i % 7)}" + str(i) for i in range(23)]))
    negatives = encoder.encode(make_file([f"other {i}" for i in range(9)], answers=False))
    plan = plan_steps(own, negatives, batch_size=4, epochs=2, seed=3)
    assert len(plan) == 16
    for epoch in (plan[:8], plan[8:]):
        assert sorted(e.row.input for s in epoch for e in s.accepted) == sorted(e.row.input for e in own)
        assert sorted(e.row.input for s in epoch for e in s.rejected) == sorted(e.row.input for e in negatives)
        assert {len(s.accepted) for s in epoch} <= {2, 3}
    assert plan == plan_steps(own, negatives, batch_size=4, epochs=2, seed=3)
    assert plan != plan_steps(own, negatives, batch_size=4, epochs=2, seed=4)


@pytest.mark.parametrize(("num_own", "num_negatives"), [(1, 1), (5, 3), (23, 9), (3, 40)])
def test_no_step_is_without_a_row(encoder: Encoder, num_own: int, num_negatives: int) -> None:
    own = encoder.encode(make_file([f"own {i}" for i in range(num_own)]))
    negatives = encoder.encode(make_file([f"other {i}" for i in range(num_negatives)], answers=False))
    collator = Collator(activated=True, decision_weight=1.0, pad=1)
    for batch_size in (1, 2, 3):
        plan = plan_steps(own, negatives, batch_size=batch_size, epochs=1, seed=3)
        assert all(step.accepted or step.rejected for step in plan)
        assert sum(len(collator.collate(step)["ids"]) for step in plan) == num_own + num_negatives
        if batch_size > 1:
            assert len(plan) == round((num_own + num_negatives) / batch_size), "none had to be left out"


@pytest.mark.parametrize("answer", ["short", "the quick brown fox jumps over the lazy dog " * 6])
def test_labels_are_the_target_tokens_and_their_weights_add_up(encoder: Encoder, answer: str) -> None:
    own = encoder.encode(DataFile(Path("own"), tuple(Row(str(i), "fox " * i, answer, i) for i in range(1, 4))))
    negatives = encoder.encode(make_file(["b", "c", "d"], answers=False))
    (rows,) = plan_steps(own, negatives, batch_size=8, epochs=1, seed=0)
    for activated in (True, False):
        step = Collator(activated=activated, decision_weight=2.0, pad=1).collate(rows)
        assert len(step["parts"]) == (1 if answer == "short" else 2)
        assert sum(float(part["weight_L"].sum()) for part in step["parts"]) == pytest.approx(3.0)
        examples = (*rows.accepted, *rows.rejected)
        assert step["ids"] == [e.row.id for e in examples]
        labels = [t for part in step["parts"] for t in part["target_L"].tolist()]
        assert labels == [t for e in examples for t in e.tokens[e.target_start :]]
        before = [t for p in step["parts"] for t in p["trained_NS"].flatten()[p["hidden_at_L"]].tolist()]
        assert before == [t for e in examples for t in e.tokens[e.target_start - 1 : -1]]


def test_a_split_keeps_rows_on_both_sides(encoder: Encoder) -> None:
    examples = encoder.encode(make_file([str(i) for i in range(10)]))
    for share in (0.0, 0.2, 5.0):
        kept, held_out = split_holdout(examples, share=share, at_most=4, seed=0)
        assert len(kept) + len(held_out) == 10
        assert 1 <= len(held_out) <= 4
        assert not {e.row.id for e in kept} & {e.row.id for e in held_out}


@pytest.mark.parametrize("seed", range(5))
def test_a_split_keeps_rows_of_the_same_input_together(encoder: Encoder, seed: int) -> None:
    texts = [str(index % 7) for index in range(20)]
    kept, held_out = split_holdout(encoder.encode(make_file(texts)), share=0.3, at_most=128, seed=seed)
    assert len(kept) + len(held_out) == 20
    assert len({e.row.input for e in held_out}) == 2
    assert not {e.row.input for e in kept} & {e.row.input for e in held_out}


def test_a_split_of_one_input_alone_still_has_two_sides(encoder: Encoder) -> None:
    kept, held_out = split_holdout(encoder.encode(make_file(["a"] * 5)), share=0.2, at_most=128, seed=0)
    assert (len(kept), len(held_out)) == (4, 1)


def test_the_digest_depends_on_content_and_order(tmp_path: Path) -> None:
    a, b = write_lines(tmp_path / "a", ["1"]), write_lines(tmp_path / "b", ["2"])
    assert digest_files([a, b]) != digest_files([b, a])
    assert digest_files([a, b]) == digest_files([a, b])


def test_the_same_files_in_other_roles_are_other_data(tmp_path: Path) -> None:
    a, b = write_lines(tmp_path / "a", ["1"]), write_lines(tmp_path / "b", ["2"])
    assert digest_roles({"x": [a, b], "y": []}) != digest_roles({"x": [a], "y": [b]})
    assert digest_roles({"x": [a], "y": [b]}) == {"x": [digest_files([a])], "y": [digest_files([b])]}
