"""A profile's file: what is read, what is refused, and that a published one is kept and guarded like the weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from expert_store import CorruptStore, ExpertStore, ExpertVersion, Guard, InvalidAdapter, Profile, read_profile
from expert_store.vector_file import MAX_VECTOR_BYTES

from .samples import CHOOSY, INFO, safetensors_bytes

VECTOR = np.array([0.6, -0.8], dtype=np.float32)
PROFILE = Profile("sha256:0", "test/1", VECTOR)
SAID = {"base_fingerprint": "sha256:0", "feature": "test/1"}
GUARD = Guard(np.array([0.25, 0.5], np.float32), np.array([0.0, 1.0], np.float32), 0.123456)
GUARDED = Profile("sha256:0", "test/1", VECTOR, GUARD)
GUARDED_SAID = {**SAID, "least": "0.5"}


def guarded(**changes: Any) -> bytes:
    """A guarded profile's file, with other tensors or words."""
    tensors = {"profile": VECTOR, "centre": GUARD.centre_D, "direction": GUARD.direction_D}
    said = {**GUARDED_SAID, **{k: v for k, v in changes.items() if isinstance(v, str)}}
    tensors |= {k: v for k, v in changes.items() if isinstance(v, np.ndarray)}
    return save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata=said)


def publish(store: ExpertStore, profile: bytes | None) -> ExpertVersion:
    with store.stage() as staged:
        (staged.folder / "adapter_config.json").write_bytes(b"{}")
        (staged.folder / "adapter_model.safetensors").write_bytes(b"weights")
        if profile is not None:
            (staged.folder / "profile.safetensors").write_bytes(profile)
        return store.publish(staged, CHOOSY, INFO, name="sql")


def test_a_profile_survives_being_opened_again(store: ExpertStore) -> None:
    version = publish(store, PROFILE.to_bytes())
    assert version.manifest.files["profile.safetensors"].size_bytes == len(PROFILE.to_bytes())
    for read in (version, ExpertStore.open(store.root).catalog.resolve("sql")):
        assert read.profile is not None
        assert (read.profile.base_fingerprint, read.profile.feature) == ("sha256:0", "test/1")
        np.testing.assert_array_equal(read.profile.vector_D, VECTOR)
        assert not read.profile.vector_D.flags.writeable
    assert store.verify() == []


def test_a_version_may_have_none(store: ExpertStore) -> None:
    assert publish(store, None).profile is None
    assert ExpertStore.open(store.root).catalog.resolve("sql").profile is None


def test_a_damaged_profile_is_found_and_never_used(store: ExpertStore) -> None:
    version = publish(store, PROFILE.to_bytes())
    path = version.folder / "profile.safetensors"
    path.write_bytes(PROFILE.to_bytes()[:-1] + b"\x00")
    with pytest.raises(CorruptStore, match=r"profile\.safetensors"):
        ExpertStore.open(store.root)
    assert [problem.path for problem in store.verify()] == [path]


def test_a_guard_survives_being_opened_again(store: ExpertStore) -> None:
    publish(store, GUARDED.to_bytes())
    read = ExpertStore.open(store.root).catalog.resolve("sql").profile
    assert read is not None
    assert read.guard is not None
    assert read.guard.least == 0.123456
    np.testing.assert_array_equal(read.guard.centre_D, GUARD.centre_D)
    np.testing.assert_array_equal(read.guard.direction_D, GUARD.direction_D)
    np.testing.assert_array_equal(read.vector_D, VECTOR)


def test_a_guard_knows_what_lies_in_its_direction() -> None:
    features = np.array([[0.6, -0.8], [0.0, 1.0], [1.0, 0.0], GUARD.centre_D], np.float32)
    cosines = [
        float((f - GUARD.centre_D) @ GUARD.direction_D / np.linalg.norm(f - GUARD.centre_D)) for f in features[:3]
    ]
    assert GUARD.knows(features).tolist() == [*(cosine >= GUARD.least for cosine in cosines), False]
    assert {*GUARD.knows(features).tolist()} == {True, False}


def header(**changes: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    return safetensors_bytes({"__metadata__": SAID, "profile": entry}, VECTOR.tobytes())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        (save({"profile": VECTOR}), "must hold"),
        (save({"profile": VECTOR, "more": VECTOR}, metadata=SAID), "must hold"),
        (save({"profile": VECTOR}, metadata={**SAID, "more": "x"}), "metadata"),
        (save({"profile": VECTOR}, metadata={"feature": "test/1"}), "metadata"),
        (save({"profile": VECTOR.astype(np.float64)}, metadata=SAID), "one vector of F32"),
        (save({"profile": VECTOR[None]}, metadata=SAID), "one vector of F32"),
        (save({"profile": VECTOR * 2}, metadata=SAID), "length 2"),
        (save({"profile": VECTOR * np.float32("nan")}, metadata=SAID), "length nan"),
        (save({"profile": VECTOR[:0]}, metadata=SAID), "length 0"),
        (PROFILE.to_bytes() + b"\x00", "one vector of F32"),
        (header(shape=[3]), "one vector of F32"),
        (header(data_offsets=[0, 4]), "one vector of F32"),
        (b" " * (MAX_VECTOR_BYTES + 1), "at most"),
        (save({"profile": VECTOR, "centre": VECTOR}, metadata=SAID), "must hold"),
        (save({"profile": VECTOR}, metadata=GUARDED_SAID), "metadata"),
        (save({"profile": VECTOR, "centre": VECTOR, "direction": VECTOR}, metadata=SAID), "metadata"),
        (guarded(profile=VECTOR * 2), "length 2"),
        (guarded(direction=VECTOR * 2), "its direction 2, not 1"),
        (guarded(direction=VECTOR * np.float32("nan")), "its direction nan"),
        (guarded(centre=VECTOR * 3), "its centre has length 3"),
        (guarded(centre=VECTOR * np.float32("inf")), "its centre has length inf"),
        (guarded(centre=np.zeros(3, np.float32)), "one vector of F32"),
        (guarded(centre=np.zeros(2, np.float64)), "one vector of F32"),
        (guarded(least="nan"), "from -1 to 1, it is 'nan'"),
        (guarded(least="1.5"), "from -1 to 1"),
        (guarded(least="much"), "from -1 to 1"),
        (guarded() + bytes(12), "one vector of F32"),
    ],
)
def test_whatever_is_no_profile_is_refused_and_nothing_is_published(store: ExpertStore, data: bytes, says: str) -> None:
    with pytest.raises(InvalidAdapter, match=says) as caught:
        publish(store, data)
    assert caught.value.field == "profile.safetensors"
    assert store.catalog.generation == 0


def test_what_safetensors_writes_and_what_is_read_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "profile.safetensors"
    path.write_bytes(PROFILE.to_bytes())
    np.testing.assert_array_equal(read_profile(path).vector_D, VECTOR)


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(PROFILE.to_bytes())
    (tmp_path / "profile.safetensors").symlink_to(tmp_path / "there")
    with pytest.raises(InvalidAdapter, match="link"):
        read_profile(tmp_path / "profile.safetensors")
