"""Which experts of a pool are worth asking: those to which a prompt is not unfamiliar, and of a large pool those whose
profiles lie nearest to it. Knows vectors and experts; nothing of how a prompt becomes a vector, and nobody's answer.

The chain then asks the proposed ones in its own order. An expert without a profile of this feature is always asked:
only whom can be judged may be left out.
"""

import threading
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from expert_store import Catalog, ExpertVersion, Guard, Vector
from server.routing.base import Shortlist


class Feature(Protocol):
    """The seam to the base; `server.model.feature.PromptFeature` in production."""

    @property
    def name(self) -> str: ...

    def of(self, tokens: Sequence[int]) -> Vector: ...


class ShortlistIndex:
    """Immutable. P profiles of width D, centred on their mean, of which only the directions count; G of them guarded.

    What all experts of a pool have in common tells none of them apart, hence the centring.
    """

    def __init__(self, experts: Sequence[ExpertVersion], feature: str) -> None:
        self._experts = tuple(experts)
        usable = {i: e.profile for i, e in enumerate(experts) if e.profile and e.profile.feature == feature}
        # profiles_PD[p] is the profile of experts[position_P[p]]
        self._position_P = np.array(list(usable), dtype=np.intp)
        self._mean_D, self._profiles_PD = _centred([profile.vector_D for profile in usable.values()])
        self._always = [position for position in range(len(self._experts)) if position not in usable]
        # guards[g] is that of experts[position_P[guarded_G[g]]]
        guards = [(place, profile.guard) for place, profile in enumerate(usable.values()) if profile.guard]
        self._guarded_G = np.array([place for place, _ in guards], dtype=np.intp)
        self._guards = GuardStack([guard for _, guard in guards]) if guards else None

    @property
    def num_experts(self) -> int:
        return len(self._experts)

    @property
    def num_unprofiled(self) -> int:
        return len(self._always)

    def nearest(self, feature_D: Vector, size: int) -> tuple[ExpertVersion, ...]:
        """The `size` experts whose profiles are nearest, and all that have none, in the order of `experts`.

        Of equally near ones, the first. All, where `size` is 0.
        """
        return self._nearest(feature_D, size, np.arange(len(self._position_P)))

    def familiar(self, feature_D: Vector, size: int) -> tuple[tuple[ExpertVersion, ...], int]:
        """The same among those whose guards know such prompts, and how many do not."""
        if self._guards is None:
            return self.nearest(feature_D, size), 0
        unlike_G = self._guarded_G[~self._guards.know(feature_D)]
        left_P = np.delete(np.arange(len(self._position_P)), unlike_G)
        return self._nearest(feature_D, size, left_P), len(unlike_G)

    def _nearest(self, feature_D: Vector, size: int, left_P: NDArray[np.intp]) -> tuple[ExpertVersion, ...]:
        """Of the profiles at those places."""
        if 0 < size < len(left_P):
            left_P = left_P[_largest((self._profiles_PD @ (feature_D - self._mean_D))[left_P], size)]
        if len(left_P) == len(self._position_P):
            return self._experts
        positions = sorted([*self._always, *(int(position) for position in self._position_P[left_P])])
        return tuple(self._experts[position] for position in positions)


class GuardStack:
    """Guards asked all at once, as `Guard.knows` asks one: G of them, at least one, of width D.

    (f - c) d = f d - c d and |f - c|^2 = |f|^2 - 2 f c + |c|^2: two products, and nothing of size [G, D] is made.
    """

    def __init__(self, guards: Sequence[Guard]) -> None:
        self._direction_GD = np.array([guard.direction_D for guard in guards], np.float32)
        self._centre_GD = np.array([guard.centre_D for guard in guards], np.float32)
        self._least_G = np.array([guard.least for guard in guards])
        self._towards_G = np.einsum("gd,gd->g", self._centre_GD, self._direction_GD, dtype=np.float64)
        self._square_G = np.einsum("gd,gd->g", self._centre_GD, self._centre_GD, dtype=np.float64)

    def know(self, feature_D: Vector) -> NDArray[np.bool_]:
        """[G]: whom a prompt with this feature is not unfamiliar to."""
        along_G = self._direction_GD @ feature_D - self._towards_G
        square_G = float(feature_D @ feature_D) - 2 * (self._centre_GD @ feature_D) + self._square_G
        found: NDArray[np.bool_] = (square_G > 0) & (along_G >= self._least_G * np.sqrt(np.maximum(square_G, 0)))
        return found


class Shortlists:
    """Keeps the index of the newest catalog it has seen. Any thread may ask."""

    def __init__(self, feature: Feature) -> None:
        self._feature = feature
        self._building = threading.Lock()
        self._indexed: tuple[int, ShortlistIndex] | None = None

    def propose(self, catalog: Catalog, tokens: Sequence[int], size: int, *, guarded: bool = False) -> Shortlist:
        """Whom of the chain to ask about a prompt: `size` experts, or all where that is 0, and those without a profile.

        `guarded`: only those of whose kind the prompt is.
        """
        started = time.perf_counter()
        index = self._index(catalog)
        feature_D = self._feature.of(tokens)
        experts, num_unfamiliar = index.familiar(feature_D, size) if guarded else (index.nearest(feature_D, size), 0)
        return Shortlist(
            experts=experts,
            size=size,
            num_unprofiled=index.num_unprofiled,
            num_unfamiliar=num_unfamiliar,
            num_chain=index.num_experts,
            seconds=time.perf_counter() - started,
        )

    def _index(self, catalog: Catalog) -> ShortlistIndex:
        """A request that was pinned to an older catalog gets that one's own, which is not kept."""
        with self._building:
            if self._indexed is not None and self._indexed[0] == catalog.generation:
                return self._indexed[1]
            index = ShortlistIndex(catalog.chain_experts, self._feature.name)
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
