"""Table schemas to ask about: their columns, their values and how people paste them. Knows no questions.

A column says in its own words what a condition on it sounds like ("older than" for an age).
"""

import re
from dataclasses import dataclass
from random import Random

from training.demo import sql_phrases as words
from training.demo import sql_words

_TYPES = {"#": "INTEGER", "%": "REAL", "$": "TEXT", "=": "TEXT"}


@dataclass(frozen=True)
class Column:
    """`says` maps "=", ">" and "<" to this column's own ways of stating such a condition."""

    name: str
    type: str
    values: tuple[str, ...]
    says: dict[str, tuple[str, ...]]

    @property
    def label(self) -> str:
        return self.name.replace("_", " ")

    @property
    def numeric(self) -> bool:
        return self.type != "TEXT"


@dataclass(frozen=True)
class Table:
    name: str
    columns: tuple[Column, ...]

    def numbers(self) -> list[Column]:
        return [c for c in self.columns if c.numeric and c.name != "id"]

    def categories(self) -> list[Column]:
        return [c for c in self.columns if c.values]

    def shown(self) -> list[Column]:
        return [c for c in self.columns if c.name != "id"]


def parse_table(line: str) -> Table:
    name, _, rest = line.partition(": ")
    return Table(name, tuple(_parse_column(part) for part in rest.split(", ")))


def _parse_column(text: str) -> Column:
    head, *says = text.strip().split("@")
    match = re.fullmatch(r"(\w+)([#%$=])(.*)", head)
    assert match, f"bad column {text!r}: this is a bug in the table list"
    grouped: dict[str, tuple[str, ...]] = {}
    for say in says:
        sign = say[0] if say[0] in "<>=" else "="
        grouped[sign] = (*grouped.get(sign, ()), *say.lstrip("<>=").split("|"))
    values = tuple(match[3].split("|")) if match[2] == "=" else ()
    return Column(match[1], _TYPES[match[2]], values, grouped)


TABLES = tuple(parse_table(line) for line in words.TABLES)
HELD_OUT_TABLES = tuple(parse_table(line) for line in words.HELD_OUT_TABLES)


INVENTED_SHARE = 0.75


def invent_table(rng: Random) -> Table:
    """A table nobody has seen: column names are to be copied from the schema, not remembered."""
    lines = [
        *rng.sample(sql_words.TEXT_COLUMNS, rng.choice((0, 1, 1, 2))),
        *rng.sample(sql_words.NUMBER_COLUMNS, rng.choice((0, 0, 1, 1))),
        *rng.sample(sql_words.CATEGORY_COLUMNS, rng.choice((0, 1, 1, 2))),
        *(_made_up(rng) for _ in range(rng.choice((1, 1, 2, 2)))),
    ]
    noun, *counted = rng.sample(sql_words.NOUNS, rng.choice((1, 2, 2)))
    lines += [f"{other}#@>with more {other} than@<with fewer {other} than" for other in counted]
    columns = {column.name: column for column in map(_parse_column, lines) if column.name != noun}
    shuffled = rng.sample(list(columns.values()), len(columns))
    first = [_parse_column("id#")] if rng.random() < 0.7 else []
    return Table(noun, (*first, *shuffled))


def _made_up(rng: Random) -> str:
    """A column that no list holds: one thing or many of it, with or without a word before or behind."""
    many = rng.choice(sql_words.NOUNS + sql_words.THINGS)
    one = singular(many)
    if rng.random() < 0.3:
        name = rng.choice((one, f"{one}_{rng.choice(sql_words.KINDS)}"))
        return f"{name}={'|'.join(rng.sample(sql_words.VALUES, 3))}"
    before, behind = rng.choice(sql_words.BEFORE), rng.choice(sql_words.BEHIND)
    plain = (*[many] * 5, *[one] * 2)  # that a question's plural is a column's own is what is hardest to learn
    names = (*plain, f"{before}_{many}", f"{before}_{one}", f"{many}_{behind}", f"{one}_{behind}")
    return rng.choice(names) + rng.choice("##%$")


def plural(label: str) -> str:
    if label.endswith(("s", "children", "staff")):
        return label
    if label.endswith("y") and label[-2] not in "aeiou":
        return label[:-1] + "ies"
    return label + ("es" if label.endswith(("ch", "x", "sh")) else "s")


def singular(noun: str) -> str:
    if noun.endswith("ies") and noun != "movies":
        return noun[:-3] + "y"
    return noun.removesuffix("es") if noun.endswith(("ches", "xes", "shes")) else noun.removesuffix("s")


def narrow(rng: Random, table: Table) -> Table:
    """The table with three to five of its columns."""
    keep = rng.sample(range(1, len(table.columns)), min(len(table.columns) - 1, rng.choice((2, 3, 3, 4))))
    first = (table.columns[0],) if rng.random() < 0.7 else ()
    return Table(table.name, first + tuple(table.columns[i] for i in sorted(keep)))


def render(rng: Random, table: Table) -> str:
    """A schema as people paste it."""
    names = ", ".join(c.name for c in table.columns)
    typed = ", ".join(f"{c.name} {c.type}" for c in table.columns)
    roll = rng.random()
    if roll < 0.45:
        return rng.choice((f"{table.name}({names})", f"{table.name} ({names})"))
    if roll < 0.7:
        return f"CREATE TABLE {table.name} ({typed});"
    if roll < 0.8:
        lines = ",\n".join(f"  {c.name} {c.type}" for c in table.columns)
        return f"CREATE TABLE {table.name} (\n{lines}\n);"
    if roll < 0.9:
        return f"{table.name}({typed})"
    return f"{table.name}\n" + "\n".join(f"- {c.name}" for c in table.columns)


def draw_table(rng: Random, *, held_out: bool) -> Table:
    """A narrowed table that has a number and at least two columns to ask for."""
    while True:
        if not held_out and rng.random() < INVENTED_SHARE:
            table = invent_table(rng)
        else:
            table = narrow(rng, rng.choice(HELD_OUT_TABLES if held_out else TABLES))
        if table.numbers() and len(table.shown()) >= 2:
            return table
