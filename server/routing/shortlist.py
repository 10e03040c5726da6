"""Which experts of a large pool are worth asking: those whose profiles lie nearest to the prompt. Knows vectors and
experts; nothing of how a prompt becomes a vector, and nobody's answer.

The chain then asks the proposed ones in its own order. An expert without a profile of this feature is always asked:
the shortlist may leave out only whom it can judge.
"""

import threading
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from expert_store import Catalog, ExpertVersion, Vector
from server.routing.base import Shortlist


class Feature(Protocol):
    """The seam to the base; `server.model.feature.PromptFeature` in production."""

    @property
    def name(self) -> str: ...

    def of(self, tokens: Sequence[int]) -> Vector: ...


class ShortlistIndex:
    """Immutable. P profiles of width D, centred on their mean, of which only the directions count.

    What all experts of a pool have in common tells none of them apart, hence the centring.
    """

    def __init__(self, experts: Sequence[ExpertVersion], feature: str) -> None:
        self._experts = tuple(experts)
        usable = {i: e.profile.vector_D for i, e in enumerate(experts) if e.profile and e.profile.feature == feature}
        # profiles_PD[p] is the profile of experts[position_P[p]]
        self._position_P = np.array(list(usable), dtype=np.intp)
        self._mean_D, self._profiles_PD = _centred(list(usable.values()))
        self._always = [position for position in range(len(self._experts)) if position not in usable]

    @property
    def num_experts(self) -> int:
        return len(self._experts)

    @property
    def num_unprofiled(self) -> int:
        return len(self._always)

    def nearest(self, feature_D: Vector, size: int) -> tuple[ExpertVersion, ...]:
        """The `size` experts whose profiles are nearest, and all that have none, in the order of `experts`.

        Of equally near ones, the first.
        """
        if size >= len(self._position_P):
            return self._experts
        chosen_K = _largest(self._profiles_PD @ (feature_D - self._mean_D), size)
        positions = sorted([*self._always, *(int(p) for p in self._position_P[chosen_K])])
        return tuple(self._experts[position] for position in positions)


class Shortlists:
    """Keeps the index of the newest catalog it has seen. Any thread may ask."""

    def __init__(self, feature: Feature) -> None:
        self._feature = feature
        self._building = threading.Lock()
        self._indexed: tuple[int, ShortlistIndex] | None = None

    def propose(self, catalog: Catalog, tokens: Sequence[int], size: int) -> Shortlist:
        """Whom of the chain to ask about a prompt: `size` experts, at least 1, and those without a profile."""
        started = time.perf_counter()
        index = self._index(catalog)
        experts = index.nearest(self._feature.of(tokens), size)
        return Shortlist(
            experts=experts,
            size=size,
            num_unprofiled=index.num_unprofiled,
            num_chain=index.num_experts,
            seconds=time.perf_counter() - started,
        )

    def _index(self, catalog: Catalog) -> ShortlistIndex:
        """A request that was pinned to an older catalog gets that one's own, which is not kept."""
        with self._building:
            if self._indexed is not None and self._indexed[0] == catalog.generation:
                return self._indexed[1]
            index = ShortlistIndex(catalog.chain_experts(), self._feature.name)
            if self._indexed is None or self._indexed[0] < catalog.generation:
                self._indexed = (catalog.generation, index)
            return index


def _centred(profiles: Sequence[Vector]) -> tuple[Vector, NDArray[np.float32]]:
    """(mean [D], directions from it [P, D]); without profiles both are empty."""
    if not profiles:
        return np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
    profiles_PD = np.stack(profiles)
    mean_D = profiles_PD.mean(axis=0)
    centred_PD = profiles_PD - mean_D
    lengths_P1 = np.linalg.norm(centred_PD, axis=1, keepdims=True)
    return mean_D, centred_PD / np.maximum(lengths_P1, np.finfo(np.float32).tiny)


def _largest(score_P: NDArray[np.float32], size: int) -> NDArray[np.intp]:
    """Where the `size` largest scores stand, 1 to P - 1 of them; of equal ones the first."""
    least = np.partition(score_P, len(score_P) - size)[len(score_P) - size]
    above = np.flatnonzero(score_P > least)
    equal = np.flatnonzero(score_P == least)[: size - len(above)]
    return np.concatenate([above, equal])
