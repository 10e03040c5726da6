"""Which logits a step is to compute, and those it did. Knows tokens; nothing of sequences or experts.

A vocabulary is long: in the bundled base the output layer is a fifth of all weights. Where an expert decides whether a
request is its own only two logits are looked at, so the fused decoder computes only two columns of that layer.
"""

from dataclasses import dataclass

from torch import Tensor

# Legend: W tokens all of whose logits are wanted, C tokens behind which two logits are, V vocabulary, I hidden width.


@dataclass(frozen=True)
class Wanted:
    """Places in the step: `all_W` and `choosing_C`; there, the logits of the token ids `between_C2`. All int64."""

    all_W: Tensor
    choosing_C: Tensor
    between_C2: Tensor


@dataclass(frozen=True)
class Logits:
    """`all_WV` in the model's number format, `between_C2` in fp32."""

    all_WV: Tensor
    between_C2: Tensor

    @classmethod
    def split(cls, logits_NV: Tensor, wanted: Wanted) -> "Logits":
        """From all logits [W + C, V] of the wanted tokens."""
        num_all = len(wanted.all_W)
        return cls(logits_NV[:num_all], logits_NV[num_all:].gather(1, wanted.between_C2).float())
