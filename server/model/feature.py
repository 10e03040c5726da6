"""Prompts as vectors that are alike where the prompts use like words. Knows the base's embeddings; runs no model.

    feature(prompt) = unit(mean over its distinct tokens of unit(embedding - mean embedding))

Tokens alone decide, so a feature costs no forward pass, and the prefix cache leaves it as it is. Tokens that every
rendered prompt holds say nothing of the task and are left out.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from expert_store import Profile, Vector
from server.model.base import Base
from server.model.chat import ChatFormat

FEATURE = "token-mean/1"  # a new number whenever the same prompt would give another vector


class PromptFeature:
    """Reads the base's embedding matrix, which nobody changes; safe in any thread."""

    def __init__(self, base: Base, chat: ChatFormat) -> None:
        self._embedding_VD = cast(Tensor, base.model.get_input_embeddings().weight).detach()
        self._mean_D = self._embedding_VD.mean(dim=0, dtype=torch.float32)
        self._common = chat.common_tokens
        self._base_fingerprint = base.spec.fingerprint

    @property
    def name(self) -> str:
        return FEATURE

    @property
    def width(self) -> int:
        return self._mean_D.shape[0]

    def of(self, tokens: Sequence[int]) -> Vector:
        """[D] fp32 of length 1. `tokens` are those of a whole prompt; at least one."""
        vector_D: Vector = self._of(tokens).cpu().numpy()
        return vector_D

    def profile(self, prompts: Iterable[Sequence[int]]) -> Profile:
        """What these prompts have in common: the mean of their features. At least one prompt, each as its tokens."""
        features = [self._of(tokens) for tokens in prompts]
        mean_D = normalize(torch.stack(features).mean(dim=0), dim=0)
        return Profile(self._base_fingerprint, FEATURE, mean_D.cpu().numpy())

    @torch.no_grad()
    def _of(self, tokens: Sequence[int]) -> Tensor:
        distinct = sorted(set(tokens) - self._common) or sorted(set(tokens))
        rows_TD = self._embedding_VD[torch.tensor(distinct, device=self._embedding_VD.device)].float()
        return normalize(normalize(rows_TD - self._mean_D, dim=1).mean(dim=0), dim=0)
