"""profile.safetensors: what the prompts of a version look like, as one vector. Knows no model and no way to make one.

The file says in its metadata on which base, and as which feature of a prompt, it was made: vectors of different
features cannot be compared.
"""

from dataclasses import dataclass
from pathlib import Path

from expert_store.vector_file import Vector, VectorFormat

PROFILE_FILE = "profile.safetensors"
_FORMAT = VectorFormat(PROFILE_FILE, "profile", ("base_fingerprint", "feature"), "relay train see")


@dataclass(frozen=True, eq=False)
class Profile:
    """One vector [D] of unit length, which nobody changes, and what it is a vector of."""

    base_fingerprint: str
    feature: str
    vector_D: Vector

    def to_bytes(self) -> bytes:
        return _FORMAT.to_bytes(self.vector_D, {"base_fingerprint": self.base_fingerprint, "feature": self.feature})


def read_profile(path: Path) -> Profile:
    """Raises InvalidAdapter."""
    said, vector_D = _FORMAT.read(path)
    return Profile(said["base_fingerprint"], said["feature"], vector_D)


def parse_profile(data: bytes) -> Profile:
    """Reads the file's bytes. Raises InvalidAdapter."""
    said, vector_D = _FORMAT.parse(data)
    return Profile(said["base_fingerprint"], said["feature"], vector_D)
