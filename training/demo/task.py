"""What a demo task and one of its rows are; knows no wording and no task."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol


class Generate(Protocol):
    """Draws one (input, output) pair; held-out pairs use wordings and content that training pairs never use."""

    def __call__(self, rng: Random, *, held_out: bool) -> tuple[str, str]: ...


@dataclass(frozen=True)
class Row:
    """One training or evaluation row; `input` is the whole user message."""

    id: str
    task: str
    input: str
    output: str


@dataclass(frozen=True)
class DemoTask:
    """A task one demo expert is trained for; `payload` draws its bare input without any instruction."""

    name: str
    description: str
    samples: tuple[str, ...]
    generate: Generate
    payload: Callable[[Random], str]
