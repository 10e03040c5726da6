"""Reads rows of training data and turns them into token sequences. Knows no tensors, no model and no recipe's loss."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.model.chat import ChatFormat, IndicatorTokens
from training.errors import InvalidData


@dataclass(frozen=True)
class Row:
    """One line of a data file. `output` is None where the file only says what to reject, or to accept."""

    id: str
    input: str
    output: str | None
    line: int


@dataclass(frozen=True)
class DataFile:
    """A file read whole and found sound."""

    path: Path
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Example:
    """A prompt and its target as tokens.

    `tokens[:frozen_length]` is what an activated expert leaves to the base, `tokens[target_start:]` what is to be
    learned, and `tokens[decision]` the one token that tells acceptance from rejection.
    """

    row: Row
    tokens: tuple[int, ...]
    frozen_length: int
    target_start: int
    decision: int
    accepts: bool


def split_lines(text: str) -> list[str]:
    """At "\\n" alone: a JSON string may hold U+2028, U+2029 and U+0085, where str.splitlines would break it."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def read_rows(path: Path, *, answers: bool) -> DataFile:
    """Reads JSON lines {"id", "input", "output", optionally "definition"}; other columns are left alone.

    With `answers` every row needs a non-empty output; without, outputs are dropped. Raises InvalidData with every
    line at fault.
    """
    try:
        lines = split_lines(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(path, [(None, f"cannot be read as UTF-8 text: {error}")]) from error
    rows: list[Row] = []
    problems: list[tuple[int | None, str]] = []
    first_lines: dict[str, int] = {}
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        row = _parse(text, number, answers=answers)
        if isinstance(row, str):
            problems.append((number, row))
            continue
        if row.id in first_lines:
            problems.append((number, f"id {row.id!r} is already used in line {first_lines[row.id]}"))
        first_lines.setdefault(row.id, number)
        rows.append(row)
    if not rows and not problems:
        problems.append((None, "the file is empty"))
    if problems:
        raise InvalidData(path, problems)
    return DataFile(path, tuple(rows))


def read_record(text: str) -> dict[str, Any]:
    """One line's object. Raises ValueError with what is wrong with it."""
    try:
        record = json.loads(text)
        json.dumps(record, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair, which is no character") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise ValueError(f"cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def _parse(text: str, line: int, *, answers: bool) -> Row | str:
    """The row, or the reason why it is none."""
    try:
        record = read_record(text)
    except ValueError as error:
        return str(error)
    identifier = record.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
        return 'needs an "id" that is a string or an integer'
    for field in ("input", "output") if answers else ("input",):
        value = record.get(field)
        if value is None:
            return f'"{field}" is missing'
        if not isinstance(value, str):
            return f'"{field}" must be a string, not {type(value).__name__}'
        if not value.strip():
            return f'"{field}" is empty'
    definition = record.get("definition")
    if definition is not None and not isinstance(definition, str):
        return f'"definition" must be a string, not {type(definition).__name__}'
    prompt = f"{definition}\n\n{record['input']}" if definition else str(record["input"])
    return Row(str(identifier), prompt, record["output"] if answers else None, line)


def refuse_contradictions(own: DataFile, negatives: Sequence[DataFile]) -> None:
    """An input that is to be accepted and rejected teaches nothing. Raises InvalidData."""
    for file in negatives:
        _refuse_inputs(file, [own], "the same input is accepted in {}".format)


def refuse_seen(held_out: DataFile, trained: Sequence[DataFile]) -> None:
    """An input that is trained on measures nothing. Raises InvalidData with every such row."""
    _refuse_inputs(held_out, trained, "the same input is trained on in {}: remove it from one of the two".format)


def _refuse_inputs(file: DataFile, others: Sequence[DataFile], reason: Callable[[str], str]) -> None:
    """Those of the file that stand in one of the others, too; `reason` says it of the place there."""
    places = {row.input: f"{other.path} line {row.line}" for other in others for row in other.rows}
    problems: list[tuple[int | None, str]] = [
        (row.line, reason(places[row.input])) for row in file.rows if row.input in places
    ]
    if problems:
        raise InvalidData(file.path, problems)


class Encoder:
    """Turns rows into examples the way the server will render them (SEE, arXiv 2504.06664).

    Accepted: accept indicator, " " + answer if there is one, end of sequence. Rejected: reject indicator, end of
    sequence. Unless `accepts` says which it is, a row is accepted if it has an answer. An activated expert wakes up at
    the generation prompt, or, `late`, at the indicators' shared tokens, which it need not learn.
    """

    def __init__(
        self, chat: ChatFormat, indicators: IndicatorTokens, *, eos: int, max_tokens: int, late: bool = False
    ) -> None:
        self._chat = chat
        self._indicators = indicators
        self._late = late
        self._eos = eos
        self._max_tokens = max_tokens

    def encode(self, file: DataFile, *, accepts: bool | None = None) -> list[Example]:
        """Raises InvalidData naming every row that is too long."""
        examples = [self.example(row, accepts=accepts) for row in file.rows]
        problems: list[tuple[int | None, str]] = [
            (
                e.row.line,
                f"{len(e.tokens)} tokens, but at most {self._max_tokens} fit: shorten it or raise --max-tokens",
            )
            for e in examples
            if len(e.tokens) > self._max_tokens
        ]
        if problems:
            raise InvalidData(file.path, problems)
        return examples

    def example(self, row: Row, *, accepts: bool | None = None) -> Example:
        prompt = self._chat.render([{"role": "user", "content": row.input}])
        accepts = row.output is not None if accepts is None else accepts
        answer = self._chat.encode(f" {row.output}") if accepts and row.output is not None else ()
        target = (*(self._indicators.accept if accepts else self._indicators.reject), *answer, self._eos)
        return Example(
            row=row,
            tokens=(*prompt.tokens, *target),
            frozen_length=len(prompt.tokens) if self._late else prompt.body_length,
            target_start=len(prompt.tokens) + (self._indicators.shared_length if self._late else 0),
            decision=len(prompt.tokens) + self._indicators.shared_length,
            accepts=accepts,
        )


def split_holdout(
    examples: Sequence[Example], *, share: float, at_most: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """(kept for training, held out), both in their old order; at least one row stays on each side.

    Rows of the same input stay together, for one that is trained on measures nothing; unless there is no other input.
    """
    number = {text: index for index, text in enumerate(dict.fromkeys(example.row.input for example in examples))}
    places = [number[example.row.input] for example in examples] if len(number) > 1 else range(len(examples))
    num_places = max(places) + 1
    count = min(at_most, max(1, round(share * num_places)), num_places - 1)
    chosen = set(random.Random(f"holdout {seed}").sample(range(num_places), count))
    kept = [example for example, place in zip(examples, places, strict=True) if place not in chosen]
    return kept, [example for example, place in zip(examples, places, strict=True) if place in chosen]


def digest_files(paths: Iterable[Path]) -> str:
    """sha256 over the files' bytes, each preceded by its length, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{len(content)}\n".encode())
        digest.update(content)
    return "sha256:" + digest.hexdigest()


def digest_roles(roles: Mapping[str, Iterable[Path]]) -> dict[str, list[str]]:
    """Of each file by itself, under what it is for: the same files in other roles are other data."""
    return {role: [digest_files([path]) for path in paths] for role, paths in roles.items()}
