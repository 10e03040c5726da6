"""The memory a router is trained on: rows of tasks seen, each with the expert that is for it. Knows no tensors.

JSON lines {"id", "expert" (or "task"), "input", "output", optionally "definition"}
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from expert_store import ExpertVersion
from server.model.chat import ChatFormat
from training.data import DataFile, Example, Row, read_rows, split_lines
from training.errors import InvalidData, InvalidRun


@dataclass(frozen=True)
class Memory:
    """Rows, and by id which of the experts each is for."""

    file: DataFile
    expert_of: Mapping[str, int]


def read_memory(path: Path, names: Sequence[str]) -> Memory:
    """`names` are the experts in the router's order. Raises InvalidData with every line at fault."""
    file = read_rows(path, answers=True)
    lines = split_lines(path.read_text(encoding="utf-8"))
    expert_of: dict[str, int] = {}
    problems: list[tuple[int | None, str]] = []
    for row in file.rows:
        record = json.loads(lines[row.line - 1])
        name = record.get("expert", record.get("task"))
        if name in names:
            expert_of[row.id] = names.index(name)
        else:
            said = 'needs an "expert" (or "task")' if name is None else f"expert {name!r} is not one of them"
            problems.append((row.line, f"{said}: name one of {', '.join(names)}"))
    if problems:
        raise InvalidData(path, problems)
    return Memory(file, expert_of)


def silent_experts(memory: Memory, names: Sequence[str], rows: Iterable[str]) -> list[str]:
    """Those of whom none of these rows is, by their ids."""
    heard = {memory.expert_of[row] for row in rows}
    return [name for index, name in enumerate(names) if index not in heard]


def refuse_silent_experts(memory: Memory, names: Sequence[str]) -> None:
    """Raises InvalidRun: nothing can be learned of an expert without rows."""
    if silent := silent_experts(memory, names, memory.expert_of):
        raise InvalidRun(
            f"no row of {memory.file.path} is for {', '.join(silent)}: add rows, or leave them out with --expert"
        )


class MemoryEncoder:
    """Rows as the server will render them and the experts, all alike, were taught to answer."""

    def __init__(self, chat: ChatFormat, experts: Sequence[ExpertVersion], *, eos: int, max_tokens: int) -> None:
        self._chat = chat
        self._eos = eos
        self._max_tokens = max_tokens
        said = {e.manifest.indicators if e.answers_after_accept else None for e in experts}
        if len(said) > 1:
            raise InvalidRun("some experts answer behind an accept string and others do not: mix experts of one kind")
        indicators = said.pop()
        self._accept = () if indicators is None else chat.indicator_tokens(indicators).accept

    def encode(self, file: DataFile) -> list[Example]:
        """Raises InvalidData naming every row that is too long."""
        examples = [self._example(row) for row in file.rows]
        problems: list[tuple[int | None, str]] = [
            (e.row.line, f"{len(e.tokens)} tokens, but at most {self._max_tokens} fit: shorten it")
            for e in examples
            if len(e.tokens) > self._max_tokens
        ]
        if problems:
            raise InvalidData(file.path, problems)
        return examples

    def _example(self, row: Row) -> Example:
        prompt = self._chat.render([{"role": "user", "content": row.input}]).tokens
        answer = self._chat.encode(f" {row.output}" if self._accept else str(row.output))
        start = len(prompt) + len(self._accept)
        return Example(
            row=row,
            tokens=(*prompt, *self._accept, *answer, self._eos),
            frozen_length=len(prompt),
            target_start=start,
            decision=start,
            accepts=True,
        )
