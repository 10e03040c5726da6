"""A centroid's file: kept and guarded like a profile, and it says what it may be compared with."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from expert_store import (
    Centroid,
    CorruptStore,
    ExpertStore,
    ExpertVersion,
    InvalidAdapter,
    Origin,
    copy_adapter,
    digest_adapter,
    read_centroid,
)

from .samples import CHOOSY, INFO

VECTOR = np.array([0.6, -0.8], dtype=np.float32)
ORIGIN = Origin("sha256:0", "sha256:1", "test/1", 7)
CENTROID = Centroid(ORIGIN, VECTOR)
SAID = {"base_fingerprint": "sha256:0", "base_adapter": "sha256:1", "feature": "test/1", "projection_seed": "7"}


def publish(store: ExpertStore, centroid: bytes | None, *, name: str = "sql", config: bytes = b"{}") -> ExpertVersion:
    with store.stage() as staged:
        (staged.folder / "adapter_config.json").write_bytes(config)
        (staged.folder / "adapter_model.safetensors").write_bytes(b"weights")
        if centroid is not None:
            (staged.folder / "centroid.safetensors").write_bytes(centroid)
        return store.publish(staged, CHOOSY, INFO, name=name)


def test_a_centroid_survives_being_opened_again(store: ExpertStore) -> None:
    version = publish(store, CENTROID.to_bytes())
    for read in (version, ExpertStore.open(store.root).catalog.resolve("sql")):
        assert read.centroid is not None
        assert read.centroid.origin == ORIGIN
        np.testing.assert_array_equal(read.centroid.vector_D, VECTOR)
        assert not read.centroid.vector_D.flags.writeable
    assert store.verify() == []
    assert publish(store, None, name="other").centroid is None


def test_a_damaged_centroid_is_found_and_never_used(store: ExpertStore) -> None:
    path = publish(store, CENTROID.to_bytes()).folder / "centroid.safetensors"
    path.write_bytes(CENTROID.to_bytes()[:-1] + b"\x00")
    with pytest.raises(CorruptStore, match=r"centroid\.safetensors"):
        ExpertStore.open(store.root)
    assert [problem.path for problem in store.verify()] == [path]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a safetensors file"),
        (save({"profile": VECTOR}, metadata=SAID), "must hold"),
        (save({"centroid": VECTOR}, metadata={**SAID, "more": "x"}), "metadata"),
        (save({"centroid": VECTOR}, metadata={**SAID, "projection_seed": "-1"}), "projection_seed"),
        (save({"centroid": VECTOR}, metadata={**SAID, "projection_seed": "9" * 20}), "projection_seed"),
        (save({"centroid": VECTOR * 2}, metadata=SAID), "length 2"),
    ],
)
def test_whatever_is_no_centroid_is_refused_and_nothing_is_published(
    store: ExpertStore, data: bytes, says: str
) -> None:
    with pytest.raises(InvalidAdapter, match=says) as caught:
        publish(store, data)
    assert caught.value.field == "centroid.safetensors"
    assert store.catalog.generation == 0


def test_the_digest_of_an_adapter_is_that_of_its_two_files(store: ExpertStore) -> None:
    one, other = publish(store, None, name="one"), publish(store, CENTROID.to_bytes(), name="other")
    changed = publish(store, None, name="changed", config=b'{"r": 1}')
    assert one.adapter_digest == other.adapter_digest == digest_adapter(one.folder)
    assert one.digest != other.digest
    assert changed.adapter_digest != one.adapter_digest


def test_copying_an_adapter_takes_its_centroid_along(store: ExpertStore, tmp_path: Path) -> None:
    copy_adapter(publish(store, CENTROID.to_bytes()).folder, tmp_path)
    assert read_centroid(tmp_path / "centroid.safetensors").origin == ORIGIN
