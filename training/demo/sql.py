"""Questions over a given schema and the one SQL query each determines; knows nothing of training.

Rules: no columns asked for means `*`; a count groups as `column, COUNT(*)`; upper-case keywords, single quotes, a
closing semicolon; conditions stand in the order in which they are asked.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from training.demo import sql_phrases as words
from training.demo.sql_tables import Column, Table, draw_table, plural, render, singular
from training.demo.task import DemoTask
from training.demo.wording import expand, fill, instruction, lower_first, roughen

_COMPARISONS = {
    ">": (
        "with [|a ]{l} [greater than|above|over|more than|higher than]",
        "[whose|where|where the] {l} is [greater than|above|over|more than|higher than]",
        "[having|that have] [|a ]{l} [above|over|greater than]",
        "[with|where] {l} >",
    ),
    "<": (
        "with [|a ]{l} [less than|below|under|lower than|smaller than]",
        "[whose|where|where the] {l} is [less than|below|under|lower than]",
        "[having|that have] [|a ]{l} [below|under|less than]",
        "[with|where] {l} <",
    ),
    ">=": ("with [|a ]{l} [of |]at least", "[whose|where the] {l} is at least", "[with|where] {l} >="),
    "<=": ("with [|a ]{l} [of |]at most", "[whose|where the] {l} is at most", "[with|where] {l} <="),
    "=": ("with [|a ]{l} [|of|equal to]", "[whose|where the] {l} is [|exactly|equal to]", "[with|where] {l} ="),
}
_EQUALS = (
    "whose {l} is {v}",
    "whose {l} is {v}",
    "with {l} {v}",
    "where {l} is {v}",
    "where the {l} is {v}",
    "having {l} {v}",
    "that have {l} {v}",
    "with the {l} {v}",
    "with {l} = {v}",
    "where {l} = '{v}'",
    "with {l} '{v}'",
    "whose {l} equals {v}",
)


@dataclass(frozen=True)
class Question:
    """`order` starts with a verb; `question` ends with "?" and is None where only an order sounds right."""

    order: str
    question: str | None
    sql: str


def _number(rng: Random, column: Column) -> str:
    if "year" in column.name or column.name in ("vintage", "opened", "season", "first_climbed"):
        return str(rng.randrange(1950, 2024))
    if column.type == "REAL" and rng.random() < 0.3:
        return f"{rng.randrange(1, 100)}.5"
    return str(rng.choice((rng.randrange(1, 20), rng.randrange(10, 100), 50 * rng.randrange(2, 40), 1000)))


def condition(rng: Random, table: Table) -> tuple[str, str, str]:
    """(column, words to stand behind the table's name, SQL) of one condition."""
    column = rng.choice(table.categories() * 2 + table.numbers() or table.numbers())
    if column.values:
        value = rng.choice(column.values)
        says = column.says.get("=", ())
        say = f"{rng.choice(says)} {{v}}" if says and rng.random() < 0.55 else rng.choice(_EQUALS)
        return column.name, fill(say, {"l": column.label, "v": value}), f"{column.name} = '{value}'"
    return _comparison(rng, column)


def _comparison(rng: Random, column: Column) -> tuple[str, str, str]:
    value, other = _number(rng, column), _number(rng, column)
    sign = rng.choice((">", ">", ">", "<", "<", "<", ">=", "<=", "=", "between"))
    if sign == "between":
        low, high = sorted((value, other), key=float)
        return column.name, f"with {column.label} between {low} and {high}", f"{column.name} BETWEEN {low} AND {high}"
    own = column.says.get(sign, ())
    generic = tuple(expand(rng, form).replace("{l}", column.label) for form in _COMPARISONS[sign])
    say = rng.choice(own) if own and rng.random() < 0.55 else rng.choice(generic)
    if column.label.endswith("s"):
        say = say.replace(" a ", " ")
    return column.name, f"{say.strip()} {value}", f"{column.name} {sign} {value}"


def where(rng: Random, table: Table, chance: float) -> tuple[str, str]:
    """(words, SQL) of no, one or two conditions, each with its leading space."""
    if rng.random() >= chance:
        return "", ""
    column, said, sql = condition(rng, table)
    if rng.random() < 0.25:
        other, more, extra = condition(rng, table)
        if other != column:
            joint = rng.choice(("and", "and", "or"))
            return f" {said} {joint} {more}", f" WHERE {sql} {joint.upper()} {extra}"
    return f" {said}", f" WHERE {sql}"


_VERBS = ("List", "Show", "Find", "Get", "Return", "Select", "Give", "Display")


def _columns(rng: Random, table: Table) -> Question:
    picked = rng.sample(table.shown(), rng.choice((1, 1, 2)))
    said, sql = where(rng, table, 0.8)
    several = len(picked) == 1 and rng.random() < 0.6
    labels = plural(picked[0].label) if several else " and ".join(c.label for c in picked)
    every = rng.choice(("all ", "all ", "", "every "))
    noun = table.name if every != "every " else "row of " + table.name
    noun, every = (table.name, "all ") if every == "every " else (noun, every)
    order = f"{rng.choice(_VERBS)} the {labels} of {every}{noun}{said}"
    asks = f"What {'are' if several or len(picked) > 1 else 'is'} the {labels} of {every}{noun}{said}?"
    query = f"SELECT {', '.join(c.name for c in picked)} FROM {table.name}{sql};"
    return Question(order, asks if rng.random() < 0.8 else None, query)


def _everything(rng: Random, table: Table) -> Question:
    said, sql = where(rng, table, 0.9)
    noun = rng.choice((f"all {table.name}", f"all {table.name}", f"every column of the {table.name}", f"{table.name}"))
    return Question(f"{rng.choice(_VERBS)} {noun}{said}", None, f"SELECT * FROM {table.name}{sql};")


def _distinct(rng: Random, table: Table) -> Question:
    column = rng.choice(table.shown())
    said, sql = where(rng, table, 0.3)
    kind = rng.choice(("different", "distinct", "unique"))
    text = f"the {kind} {plural(column.label)} of {rng.choice(('all ', ''))}{table.name}{said}"
    query = f"SELECT DISTINCT {column.name} FROM {table.name}{sql};"
    return Question(f"{rng.choice(_VERBS)} {text}", f"What are {text}?", query)


def _count(rng: Random, table: Table) -> Question:
    said, sql = where(rng, table, 0.85)
    order = rng.choice(
        (f"Count the {table.name}{said}", f"Count all {table.name}{said}", f"Find the number of {table.name}{said}")
    )
    asks = rng.choice((f"How many {table.name}{said} are there?", f"What is the number of {table.name}{said}?"))
    asks = asks if said else f"How many {table.name} are there?"
    return Question(order, asks, f"SELECT COUNT(*) FROM {table.name}{sql};")


_AGGREGATES = (
    ("SUM", ("total", "sum of the", "total")),
    ("AVG", ("average", "mean", "average")),
    ("MIN", ("lowest", "minimum", "smallest")),
    ("MAX", ("highest", "maximum", "largest")),
)


def _aggregate(rng: Random, table: Table) -> Question:
    column = rng.choice(table.numbers())
    function, names = rng.choice(_AGGREGATES)
    said, sql = where(rng, table, 0.6)
    text = f"the {rng.choice(names)} {column.label} of {rng.choice(('all ', 'all ', 'the '))}{table.name}{said}"
    verb = rng.choice(("Find", "Get", "Calculate", "Compute", "Show"))
    return Question(f"{verb} {text}", f"What is {text}?", f"SELECT {function}({column.name}) FROM {table.name}{sql};")


def _top(rng: Random, table: Table) -> Question:
    column = rng.choice(table.numbers())
    shown = rng.choice([c for c in table.shown() if c != column])
    limit = rng.choice((1, 1, *range(2, 11)))
    high = rng.random() < 0.6
    said, sql = where(rng, table, 0.25)
    end = rng.choice(("highest", "largest", "greatest") if high else ("lowest", "smallest"))
    noun = f"{singular(table.name)}{said}" if limit == 1 else f"{limit} {table.name}{said}"
    who = f"the {noun} with the {end} {column.label}"
    if high and limit > 1 and rng.random() < 0.3:
        who = f"the top {limit} {table.name}{said} by {column.label}"
    order = f"ORDER BY {column.name} {'DESC' if high else 'ASC'} LIMIT {limit}"
    if rng.random() < 0.25:
        return Question(f"{rng.choice(_VERBS)} {who}", None, f"SELECT * FROM {table.name}{sql} {order};")
    text = f"the {shown.label if limit == 1 else plural(shown.label)} of {who}"
    asks = f"What {'is' if limit == 1 else 'are'} {text}?"
    return Question(f"{rng.choice(_VERBS)} {text}", asks, f"SELECT {shown.name} FROM {table.name}{sql} {order};")


def _sorted(rng: Random, table: Table) -> Question:
    column = rng.choice(table.shown())
    shown = rng.choice(table.shown())
    down = rng.random() < 0.5
    said, sql = where(rng, table, 0.3)
    how = rng.choice(("in descending order", "descending") if down else ("in ascending order", "ascending"))
    by = f"{rng.choice(('sorted', 'ordered'))} by {column.label}"
    text = f"the {plural(shown.label)} of all {table.name}{said}, {by} {how}"
    tail = f"ORDER BY {column.name} {'DESC' if down else 'ASC'}"
    return Question(f"{rng.choice(_VERBS)} {text}", None, f"SELECT {shown.name} FROM {table.name}{sql} {tail};")


def _count_by(rng: Random, table: Table) -> Question:
    column = rng.choice(table.categories() * 3 + table.shown())
    said, sql = where(rng, table, 0.12)
    each = rng.choice(
        (f"for each {column.label}", f"per {column.label}", f"in each {column.label}", f"by {column.label}")
    )
    order = rng.choice((f"Count the {table.name}{said} {each}", f"Show the number of {table.name}{said} {each}"))
    asks = f"How many {table.name}{said} are there {each}?"
    query = f"SELECT {column.name}, COUNT(*) FROM {table.name}{sql} GROUP BY {column.name};"
    return Question(order, asks, query)


def _aggregate_by(rng: Random, table: Table) -> Question:
    column = rng.choice(table.numbers())
    group = rng.choice([c for c in table.categories() * 3 + table.shown() if c != column])
    function, names = rng.choice(_AGGREGATES)
    each = rng.choice((f"for each {group.label}", f"per {group.label}", f"in each {group.label}", f"by {group.label}"))
    text = f"the {rng.choice(names)} {column.label} of {table.name} {each}"
    query = f"SELECT {group.name}, {function}({column.name}) FROM {table.name} GROUP BY {group.name};"
    return Question(f"{rng.choice(('Show', 'Get', 'Find', 'Calculate'))} {text}", f"What is {text}?", query)


_KINDS: tuple[tuple[Callable[[Random, Table], Question], int], ...] = (
    (_columns, 30),
    (_everything, 14),
    (_distinct, 5),
    (_count, 16),
    (_aggregate, 15),
    (_top, 13),
    (_sorted, 7),
    (_count_by, 9),
    (_aggregate_by, 6),
)


def draw_question(rng: Random, table: Table) -> Question:
    kinds, weights = zip(*_KINDS, strict=True)
    drawn: Question = rng.choices(kinds, weights)[0](rng, table)
    return _by_column_names(drawn, table) if rng.random() < 0.25 else drawn


def _by_column_names(asked: Question, table: Table) -> Question:
    """The same question in the schema's own column names ("hire_year" for "hire year")."""
    order, question = asked.order, asked.question
    for column in table.columns:
        order = order.replace(f" {column.label}", f" {column.name}")
        question = question and question.replace(f" {column.label}", f" {column.name}")
    return Question(order, question, asked.sql)


_FRAMES = (
    "{i}:\n{s}\n\n{q}",
    "{i}.\n{s}\n{q}",
    "{i}.\n\nSchema: {s}\nQuestion: {q}",
    "{i}.\n\nSchema:\n{s}\n\nQuestion: {q}\nSQL:",
    "{i}.\nTable: {s}\nQuestion: {q}",
    "{i}.\nTables:\n{s}\n\nRequest: {q}",
    "{i}\nDatabase: {s}\nQ: {q}",
    "{i}: {q}\n{s}",
    "{i}: {q}\n\nSchema: {s}",
    "{i}: {q}\n\nTable:\n{s}",
    "{i}:\n{q}\n```\n{s}\n```",
    '{i}: "{q}"\n{s}',
    "{s}\n{i}: {q}",
    "{s}\n\n{i}: {q}",
    "{s}\n\n{i}:\n{q}",
    "Schema: {s}\n{i}: {q}",
    "Given the table {s}\n{i}: {q}",
    "```sql\n{s}\n```\n{i}: {q}",
    "{s}\n{q}\n{i}",
    "{s}\n\n{q}\n\n{i}",
    "{q}\n{s}\n{i}",
    "Question: {q}\nSchema: {s}\n{i}",
    "Table: {s}\nQuestion: {q}\n{i}",
)


def _tables_text(rng: Random, table: Table, *, held_out: bool) -> str:
    """The rendered schema, now and then beside a second table that the question does not need."""
    text = render(rng, table)
    if "\n" in text or rng.random() > 0.12:
        return text
    other = draw_table(rng, held_out=held_out)
    if other.name == table.name or len(text) > 90:
        return text
    names = f"{other.name}({', '.join(c.name for c in other.columns)})"
    own = f"{table.name}({', '.join(c.name for c in table.columns)})"
    return "\n".join(rng.sample((names, own), 2))


def _fits(frame: str, text: str) -> bool:
    stopped = text.endswith((".", "?", "!"))
    return not (stopped and ("{i}:" in frame or "{i}." in frame))


def _inline(frame: str, slots: dict[str, str]) -> str:
    """A statement that stands inside a sentence loses its semicolon."""
    inside = re.search(r"\{s\}[^\n]", frame) is not None
    return fill(frame, slots | ({"s": slots["s"].rstrip(";")} if inside else {}))


def generate(rng: Random, *, held_out: bool) -> tuple[str, str]:
    book = words.HELD_OUT if held_out else words.TRAIN
    table = draw_table(rng, held_out=held_out)
    asked = draw_question(rng, table)
    as_order = asked.question is None or rng.random() < 0.5
    question = asked.question if asked.question and not as_order else asked.order + rng.choice(("", "."))
    schema = _tables_text(rng, table, held_out=held_out)
    slots = {"s": schema, "q": question, "c": lower_first(asked.order), "C": asked.order}
    if rng.random() < 0.35 and (as_order or "{q}" in "".join(book.inline)):
        frames = [f for f in book.inline if "\n" not in schema or "{s}\n" in f or "\n{s}" in f]
        return _inline(expand(rng, rng.choice(frames or book.inline)), slots), asked.sql
    text = instruction(rng, book)
    frame = rng.choice([f for f in _FRAMES if _fits(f, text)])
    if rng.random() < 0.1:
        slots["q"] = roughen(rng, question) if not re.search(r"[A-Z]", question[1:]) else question
    return fill(frame, slots | {"i": text}), asked.sql


def payload(rng: Random) -> str:
    """A SQL query of the task's kind, for prompts that want something else done with one."""
    return draw_question(rng, draw_table(rng, held_out=False)).sql


def schema_payload(rng: Random) -> str:
    return render(rng, draw_table(rng, held_out=False))


TASK = DemoTask(
    name="sql",
    description="Writes the SQL query for a question over a given table schema.",
    samples=(
        "Write a SQL query for this question.\nSchema: users(id, name, age, city)\nQuestion: How many users are "
        "older than 30?",
        "Given products(id, name, price), write SQL to list the names of the 5 products with the highest price",
        "CREATE TABLE orders (id INTEGER, status TEXT, total REAL);\n\nTurn this question into SQL: What is the "
        "average total"
        " of all orders whose status is open?",
        "employees(id, name, department)\nSQL: How many employees are there per department?",
    ),
    generate=generate,
    payload=payload,
)
