"""What can go wrong while training, as exceptions. Knows no command line: `training.commands` prints the message."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

SHOWN_PROBLEMS = 20


class TrainingError(Exception):
    """Root of the tree; the message names the value at fault and the way out."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidData(TrainingError):
    """A data file cannot be trained on. `problems` are (line number or None, reason)."""

    def __init__(self, path: Path, problems: Sequence[tuple[int | None, str]]) -> None:
        lines = [reason if line is None else f"line {line}: {reason}" for line, reason in problems[:SHOWN_PROBLEMS]]
        if len(problems) > SHOWN_PROBLEMS:
            lines.append(f"and {len(problems) - SHOWN_PROBLEMS} more")
        super().__init__(f"{path}: nothing was trained\n  " + "\n  ".join(lines))
        self.path = path
        self.problems = tuple(problems)

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        """Made again of what it was made of, in the process that a unit's failure comes back to."""
        return type(self), (self.path, self.problems)


class InvalidRun(TrainingError):
    """The options contradict each other, the base model or what is already in the output folder."""


class Diverged(TrainingError):
    """The loss or a gradient stopped being a finite number."""
