"""The demo rows are what they claim to be: answers are checked by other means than the generators' own."""

import itertools
import json
import re
import sqlite3
from contextlib import closing
from datetime import date
from pathlib import Path
from random import Random

import pytest

from training.demo import contacts_phrases, dates, dates_phrases, logs_phrases, sentiment_phrases, sql_phrases
from training.demo.general import CATEGORIES
from training.demo.general_held_out import HELD_OUT
from training.demo.tasks import MAX_INPUT_CHARS, TASKS, Row, general_rows, main, rows
from training.demo.wording import Phrasebook, expand, fill, polite

NAMES = ("contacts", "dates", "logs", "sentiment", "sql")
BOOKS = {
    "contacts": (contacts_phrases.TRAIN, contacts_phrases.HELD_OUT),
    "dates": (dates_phrases.TRAIN, dates_phrases.HELD_OUT),
    "logs": (logs_phrases.TRAIN, logs_phrases.HELD_OUT),
    "sentiment": (sentiment_phrases.TRAIN, sentiment_phrases.HELD_OUT),
    "sql": (sql_phrases.TRAIN, sql_phrases.HELD_OUT),
}
MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()  # noqa: SIM905
UNITS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
    "nineteenth",
]


def sample(task: str, held_out: bool, count: int = 400) -> list[Row]:
    return rows(task, count, seed=5, held_out=held_out)


def both(task: str) -> list[Row]:
    return sample(task, False) + sample(task, True)


def wordings(template: str) -> list[str]:
    """Every reading of a template's choices, written without the generator's own expansion."""
    match = re.search(r"\[([^\[\]]*\|[^\[\]]*)\]", template)
    if match is None:
        return [template]
    start, end = match.span()
    return list(
        itertools.chain.from_iterable(wordings(template[:start] + c + template[end:]) for c in match[1].split("|"))
    )


def longest_piece(wording: str) -> str:
    return max(re.split(r"\{\w+\}", wording), key=len).strip().lower()


def test_the_five_tasks_are_there_with_their_samples() -> None:
    assert sorted(TASKS) == sorted(NAMES)
    for name, task in TASKS.items():
        assert task.name == name
        assert task.description.endswith(".")
        assert len(set(task.samples)) == 4


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("task", NAMES)
def test_the_same_seed_gives_the_same_rows_and_another_seed_others(task: str, held_out: bool) -> None:
    assert rows(task, 60, 3, held_out) == rows(task, 60, 3, held_out)
    assert rows(task, 60, 3, held_out) != rows(task, 60, 4, held_out)
    assert rows(task, 60, 3, held_out)[:20] == rows(task, 20, 3, held_out)


@pytest.mark.parametrize("task", NAMES)
def test_inputs_are_distinct_and_short_and_every_row_has_an_answer(task: str) -> None:
    drawn = both(task)
    assert len({row.input for row in drawn}) == len(drawn)
    assert len({row.id for row in drawn}) == len(drawn)
    for row in drawn:
        assert row.task == task
        assert 0 < len(row.input) <= MAX_INPUT_CHARS
        assert 0 < len(row.output) <= 230
        assert "\n" not in row.output
        assert not re.search(r"\{\w+\}", row.input), f"a slot was left open: {row.input}"


@pytest.mark.parametrize("task", NAMES)
def test_there_are_forty_phrasings_for_training_and_ten_unseen_ones(task: str) -> None:
    train, held_out = BOOKS[task]
    assert len(train.phrases()) >= 40
    assert len(held_out.phrases()) >= 10


@pytest.mark.parametrize("task", NAMES)
def test_held_out_phrasings_never_occur_in_training_or_general_rows(task: str) -> None:
    book: Phrasebook = BOOKS[task][1]
    pieces = [longest_piece(w) for phrase in book.phrases() + book.tails for w in wordings(phrase)]
    assert min(map(len, pieces)) >= 8
    seen = "\n".join(row.input.lower() for row in [*rows(task, 1500, 0, False), *general_rows(1500, 0, False)])
    assert [piece for piece in pieces if piece in seen] == []


def read_day(text: str) -> int:
    number = re.search(r"\d+", text)
    if number:
        return int(number[0])
    words = text.split("-")
    if words[0] in ("twenty", "thirty") and len(words) == 2:
        return {"twenty": 20, "thirty": 30}[words[0]] + UNITS.index(words[1]) + 1
    return {"twentieth": 20, "thirtieth": 30, **{word: i + 1 for i, word in enumerate(UNITS)}}[text]


def read_date(text: str) -> date:
    """A second reading of the spellings, by elimination and not by the generator's patterns."""
    text = re.sub(r"\d{1,2}:\d\d(:\d\d)?( ?[ap]m)?|\b\d{1,2} ?[ap]m\b|\b\d{1,2} o'clock", " ", text.lower())
    text = re.sub(r"t\s+z|\b(at|on|gmt|the|of)\b", " ", text)
    if match := re.search(r"\b(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?!\d)", text):
        return date(*map(int, match.groups()))
    if match := re.search(r"\b(\d{1,2})\.(\d{1,2})\.(\d{4})\b", text):
        return date(int(match[3]), int(match[2]), int(match[1]))
    if match := re.search(r"\b(\d{4})(\d\d)(\d\d)\b", text):
        return date(*map(int, match.groups()))
    year = re.search(r"(?<!\d)(19|20)\d\d(?!\d)", text)
    month = re.search(r"(?<![a-z])(" + "|".join(MONTHS) + r")[a-z]*", text)
    assert year, text
    assert month, text
    rest = text.replace(year[0], " ").replace(month[0], " ")
    days = [w for w in re.findall(r"\d+|[a-z]+(?:-[a-z]+)?", re.sub(r"(\d)(st|nd|rd|th)\b", r"\1", rest)) if len(w) > 0]
    days = [w for w in days if w[0].isdigit() or w.endswith(("st", "nd", "rd", "th"))]
    return date(int(year[0]), MONTHS.index(month[1]) + 1, read_day(days[-1]))


def test_every_spelling_of_a_date_reads_back_as_that_day() -> None:
    rng = Random(11)
    for _ in range(3000):
        day = dates.draw_date(rng)
        text = dates.write_date(rng, day)
        assert read_date(text) == day, text


def test_a_weekday_in_a_spelling_is_the_right_one() -> None:
    rng = Random(12)
    for _ in range(3000):
        day = dates.draw_date(rng)
        named = re.search(r"\b(mon|tue|wed|thu|fri|sat|sun)", dates.write_date(rng, day).lower())
        assert named is None or named[1] == f"{day:%a}".lower()


def test_dates_rows_answer_with_an_iso_date_whose_year_stands_in_the_input() -> None:
    for row in both("dates"):
        assert date.fromisoformat(row.output).isoformat() == row.output
        assert row.output[:4] in row.input


@pytest.mark.parametrize(
    ("task", "keys"),
    [("contacts", ["name", "email", "phone", "company"]), ("logs", ["timestamp", "level", "service", "message"])],
)
def test_json_answers_have_the_keys_in_order_and_copy_their_values(task: str, keys: list[str]) -> None:
    for row in both(task):
        fields = json.loads(row.output)
        assert list(fields) == keys
        for value in (v for v in fields.values() if v is not None):
            assert value in row.input or value in row.input.replace('"', ""), row


def test_contacts_give_at_least_two_fields_and_leave_no_address_behind() -> None:
    for row in both("contacts"):
        fields = json.loads(row.output)
        assert sum(v is not None for v in fields.values()) >= 2
        assert ("@" in row.input) == (fields["email"] is not None)


def test_logs_with_a_level_word_report_it() -> None:
    levels = re.compile(r"\b(ERROR|INFO|WARN|WARNING|DEBUG|CRITICAL|FATAL|TRACE|NOTICE)\b")
    for row in both("logs"):
        level = json.loads(row.output)["level"]
        if level is None:
            assert not levels.search(row.input), row


def given_columns(text: str, table: str) -> list[str]:
    """The columns of a table as the prompt renders it: in brackets or as bullets."""
    bracketed = re.search(rf"\b{table} ?\(([^)]*)\)", text)
    if bracketed:
        return [part.split()[0] for part in bracketed[1].split(",")]
    bullets = re.search(rf"^.*\b{table}\n((?:- \w+\n?)+)", text, re.MULTILINE)
    assert bullets, f"no schema of {table} in {text!r}"
    return re.findall(r"- (\w+)", bullets[1])


def test_sql_runs_on_the_schema_it_was_given() -> None:
    for row in both("sql"):
        table = re.search(r" FROM (\w+)", row.output)
        assert table
        columns = given_columns(row.input, table[1])
        with closing(sqlite3.connect(":memory:")) as base:
            base.execute(f"CREATE TABLE {table[1]} ({', '.join(columns)})")
            # SQLite takes an unknown name in double quotes for a string, never a bare one: bare names are checked.
            base.execute(row.output)
        assert row.output.endswith(";")
        assert '"' not in row.output


def test_every_value_of_a_query_stands_in_the_question() -> None:
    for row in both("sql"):
        for value in re.findall(r"'([^']*)'|(?<= )(\d+(?:\.\d+)?)\b", row.output):
            text = value[0] or value[1]
            assert text.lower() in row.input.lower() or row.output.endswith("LIMIT 1;"), row


def test_held_out_sql_asks_about_tables_never_trained_on() -> None:
    def tables(held_out: bool) -> set[str]:
        return {m[1] for row in sample("sql", held_out, 800) if (m := re.search(r" FROM (\w+)", row.output))}

    assert len(tables(False)) >= 30
    assert tables(False).isdisjoint(tables(True))


def test_sentiment_labels_are_the_three_and_balanced() -> None:
    labels = [row.output for row in sample("sentiment", False, 900)]
    assert set(labels) == {"positive", "negative", "neutral"}
    assert min(labels.count(label) for label in set(labels)) > 240


def test_general_rows_are_distinct_diverse_and_without_an_answer() -> None:
    drawn = general_rows(1500, 0, False)
    assert drawn == general_rows(1500, 0, False)
    assert len({row.input for row in drawn}) == 1500
    assert {(row.task, row.output) for row in drawn} == {("general", "")}
    assert len(CATEGORIES) >= 40
    assert {row.id.split("-", 2)[2].rsplit("-", 1)[0] for row in drawn} == {c.replace(" ", "_") for c in CATEGORIES}
    for row in drawn:
        assert len(row.input) <= MAX_INPUT_CHARS
        assert not re.search(r"\{[a-z]\w+\}", row.input), row


def test_held_out_general_prompts_are_a_hundred_and_never_trained_on() -> None:
    strangers = ("chit-chat", "arithmetic", "facts", "code review", "poems")
    prompts = [prompt for category in strangers for prompt in HELD_OUT[category]]
    assert len(set(prompts)) >= 100
    trained = {row.input.lower().strip(" .?!") for row in general_rows(3000, 1, False)}
    assert [p for p in itertools.chain(*HELD_OUT.values()) if p.lower().strip(" .?!") in trained] == []


def test_asking_for_more_distinct_rows_than_exist_is_an_error_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="ask for fewer"):
        general_rows(1000, 0, held_out=True)


def test_the_command_writes_train_and_eval_files(tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "rows"), "--train", "20", "--eval", "10", "--seed", "2"])
    files = {path.name: path.read_text(encoding="utf-8").splitlines() for path in (tmp_path / "rows").iterdir()}
    assert sorted(files) == sorted(f"{n}.{s}.jsonl" for n in (*NAMES, "general") for s in ("train", "eval"))
    assert all(len(lines) == (20 if ".train." in name else 10) for name, lines in files.items())
    first = json.loads(files["dates.train.jsonl"][0])
    assert list(first) == ["id", "input", "output"]
    assert first["input"] == rows("dates", 20, 2, False)[0].input


def test_templates_settle_nested_choices_and_leave_filled_braces_alone() -> None:
    assert {expand(Random(i), "[a|b[c|d]] e") for i in range(40)} == {"a e", "bc e", "bd e"}
    assert fill("{x} and {y}", {"x": "{y}", "y": "1"}) == "{y} and 1"
    assert all("{" not in polite(Random(i), "Convert this") for i in range(100))
