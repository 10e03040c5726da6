"""A profile's file: what is read, what is refused, and that a published one is kept and guarded like the weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from expert_store import CorruptStore, ExpertStore, ExpertVersion, InvalidAdapter, Profile, read_profile
from expert_store.vector_file import MAX_VECTOR_BYTES

from .samples import CHOOSY, INFO, safetensors_bytes

VECTOR = np.array([0.6, -0.8], dtype=np.float32)
PROFILE = Profile("sha256:0", "test/1", VECTOR)
SAID = {"base_fingerprint": "sha256:0", "feature": "test/1"}


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
