"""A tiny base and a folder of toy tasks."""

import json
from pathlib import Path

import pytest

from server.model.base import load_base
from tests.support.tiny import write_base
from training.evaluate.units import BaseSource, Workshop


@pytest.fixture(scope="session")
def base_source(tmp_path_factory: pytest.TempPathFactory) -> BaseSource:
    folder = write_base(tmp_path_factory.mktemp("base"))
    fingerprint = load_base(str(folder), device="cpu", cache=folder).spec.fingerprint
    return BaseSource(str(folder), folder, "cpu", fingerprint)


@pytest.fixture
def workshop(base_source: BaseSource, tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "work", base_source)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks: two for a stream, one that stays unseen."""
    folder = tmp_path_factory.mktemp("data")
    for name, word in (("jump", "fox"), ("lazy", "dog"), ("paris", "cap")):
        for part, first, count in (("train", 0, 24), ("eval", 100, 6)):
            rows = [
                {"id": f"{i}", "definition": f"Say {word}.", "input": f"the {name} {i}", "output": f"{word} {i % 3}"}
                for i in range(first, first + count)
            ]
            (folder / f"{name}.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
