"""What came of a step, by sequence. Knows segments and rows of logits; nothing of jobs."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from torch import Tensor

from server.engine.scheduler import Segment, Sequence
from server.model.logits import Logits


@dataclass(frozen=True)
class StepLogits:
    """`all_WV` are the rows of the sequences that came to an end where they want all logits."""

    all_WV: Tensor
    _rows: dict[int, int]
    _choices: dict[int, tuple[float, float]]

    @classmethod
    def of(cls, segments: Seq[Segment], logits: Logits) -> "StepLogits":
        """`logits` as `Runner.run` gives them: in the order of the segments."""
        ended = (id(s.sequence) for s in segments if s.wants_logits)
        choosing = (id(s.sequence) for s in segments if s.choice is not None)
        rows = {key: row for row, key in enumerate(ended)}
        pairs = {key: (pair[0], pair[1]) for key, pair in zip(choosing, logits.between_C2.tolist(), strict=True)}
        return cls(logits.all_WV, rows, pairs)

    def row(self, sequence: Sequence) -> int | None:
        """Which row of `all_WV` is the sequence's, if it has one."""
        return self._rows.get(id(sequence))

    def behind(self, sequence: Sequence) -> Tensor | None:
        """[V] of the sequence's last token, if this step computed them. A view of the step's own memory."""
        row = self.row(sequence)
        return None if row is None else self.all_WV[row]

    def choice(self, sequence: Sequence) -> tuple[float, float] | None:
        """The two logits of the sequence's choice, if this step came by it."""
        return self._choices.get(id(sequence))
