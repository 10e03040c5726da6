"""The hidden states of one prompt, gathered over the steps that compute it. Knows sums; nothing of who wants them."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

States = NDArray[np.float32]  # [L, D]: of each decoder layer


class PromptStates:
    """Owned by the engine thread."""

    def __init__(self) -> None:
        self._sum_LD: Tensor | None = None
        self._num_tokens = 0

    def add(self, sum_LD: Tensor, num_tokens: int) -> None:
        """What so many further tokens add up to."""
        self._sum_LD = sum_LD if self._sum_LD is None else self._sum_LD + sum_LD
        self._num_tokens += num_tokens

    def mean(self) -> States:
        """[L, D] fp32 over all tokens so far; at least one."""
        assert self._sum_LD is not None, "no token of this prompt has been computed. This is a bug."
        mean_LD: States = (self._sum_LD / self._num_tokens).cpu().numpy()
        return mean_LD
