"""A pool for all routers, and a folder of toy tasks whose prompts its experts are for."""

import json
from pathlib import Path

import pytest

from tests.support.three_routers import ThreeRouters, make_three_routers


@pytest.fixture(scope="session")
def three_routers(tmp_path_factory: pytest.TempPathFactory) -> ThreeRouters:
    return make_three_routers(tmp_path_factory.mktemp("pool"))


@pytest.fixture(scope="session")
def task_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("jump", "lazy"):
        for part, first in (("train", 0), ("eval", 100)):
            rows = [
                {"id": str(i), "definition": f"Say {name}.", "input": f"the {name} {i}", "output": f"{name} {i % 3}"}
                for i in range(first, first + 6)
            ]
            (folder / f"{name}.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
