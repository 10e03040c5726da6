"""profile.safetensors: what the prompts of a version look like, as one vector, and from where on a prompt looks like
them. Knows no model and no way to make one.

The file says in its metadata on which base, and as which feature of a prompt, it was made: vectors of different
features cannot be compared.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expert_store.errors import shown
from expert_store.vector_file import UNIT_TOLERANCE, Vector, VectorFormat

# N prompts, D width.
PROFILE_FILE = "profile.safetensors"
_PROFILE, _CENTRE, _DIRECTION, _LEAST = "profile", "centre", "direction", "least"
_FORMAT = VectorFormat(
    PROFILE_FILE, _PROFILE, ("base_fingerprint", "feature"), "relay train see", (_CENTRE, _DIRECTION), (_LEAST,)
)


@dataclass(frozen=True, eq=False)
class Guard:
    """Which prompts are of the expert's kind: those with cos(feature - centre, direction) >= least.

    `centre_D` is where prompts lie that are not its own; `direction_D`, of unit length, where its own lie from there.
    """

    centre_D: Vector
    direction_D: Vector
    least: float

    def knows(self, features_ND: NDArray[np.float32]) -> NDArray[np.bool_]:
        """[N]; never a prompt that lies in the centre itself."""
        away_ND = features_ND - self.centre_D
        length_N = np.linalg.norm(away_ND, axis=1)
        found: NDArray[np.bool_] = (length_N > 0) & (away_ND @ self.direction_D >= self.least * length_N)
        return found


@dataclass(frozen=True, eq=False)
class Profile:
    """One vector [D] of unit length, which nobody changes, and what it is a vector of. Without a guard, no prompt is
    too unlike the expert's own."""

    base_fingerprint: str
    feature: str
    vector_D: Vector
    guard: Guard | None = None

    def to_bytes(self) -> bytes:
        vectors, said = {_PROFILE: self.vector_D}, {"base_fingerprint": self.base_fingerprint, "feature": self.feature}
        if self.guard is not None:
            vectors |= {_CENTRE: self.guard.centre_D, _DIRECTION: self.guard.direction_D}
            said[_LEAST] = repr(self.guard.least)
        return _FORMAT.to_bytes(vectors, said)


def read_profile(path: Path) -> Profile:
    """Raises InvalidAdapter."""
    return _profile(*_FORMAT.read(path))


def parse_profile(data: bytes) -> Profile:
    """Reads the file's bytes. Raises InvalidAdapter."""
    return _profile(*_FORMAT.parse(data))


def _profile(said: Mapping[str, str], vectors: Mapping[str, Vector]) -> Profile:
    guard = _guard(said[_LEAST], vectors) if _LEAST in said else None
    return Profile(said["base_fingerprint"], said["feature"], vectors[_PROFILE], guard)


def _guard(least: str, vectors: Mapping[str, Vector]) -> Guard:
    centre_D, direction_D = vectors[_CENTRE], vectors[_DIRECTION]
    longest, length = (float(np.linalg.norm(vector_D)) for vector_D in (centre_D, direction_D))
    if not (longest < 1 + UNIT_TOLERANCE and abs(length - 1) < UNIT_TOLERANCE):  # also where one is NaN
        raise _FORMAT.refusal(f"its centre has length {longest:g}, at most 1; its direction {length:g}, not 1")
    return Guard(centre_D, direction_D, _cosine(least))


def _cosine(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not -1 <= value <= 1:
        raise _FORMAT.refusal(f"{_LEAST} in its metadata must be a number from -1 to 1, it is {shown(text)}")
    return value
