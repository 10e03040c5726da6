"""Several processes on one store, and processes that are killed."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import expert_store
from expert_store import ExpertStore

from .samples import publish


def environment() -> dict[str, str]:
    """One in which another process finds the store's package, and whatever this one finds by its path."""
    folders = [str(Path(expert_store.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}


def start_publisher(root: Path, name: str, count: int) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("publisher.py")
    return subprocess.Popen(
        [sys.executable, str(script), str(root), name, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def test_two_processes_publish_to_one_name_and_lose_nothing(tmp_path: Path) -> None:
    """Meanwhile this process reads, opens and verifies: it sees only whole catalogs, ever newer, and sweeps nothing."""
    reader = ExpertStore.open(tmp_path)
    processes = [start_publisher(tmp_path, "sql", 12) for _ in range(2)]
    generations = [0]
    while any(process.poll() is None for process in processes):
        generations.append(reader.refresh().generation)
        assert ExpertStore.open(tmp_path).catalog.generation >= generations[-1]
        assert reader.verify() == []

    said = [int(line) for process in processes for line in process.communicate()[0].split()]
    assert [process.returncode for process in processes] == [0, 0]
    assert generations == sorted(generations)
    assert sorted(said) == list(range(1, 25))
    assert list(reader.refresh().experts["sql"].versions) == list(range(1, 25))
    assert reader.catalog.generation == 24
    assert reader.catalog.chain == ("sql",)
    assert reader.verify() == []


def test_a_killed_publisher_leaves_a_sound_store(tmp_path: Path) -> None:
    rng = random.Random(0)
    published = 0
    for _ in range(4):
        process = start_publisher(tmp_path, "sql", 10_000)
        assert process.stdout is not None
        said = [int(process.stdout.readline())]
        time.sleep(rng.uniform(0.0, 0.15))
        process.kill()
        said += [int(line) for line in process.communicate()[0].split("\n") if line]

        store = ExpertStore.open(tmp_path)
        versions = list(store.catalog.experts["sql"].versions)
        assert said[0] == published + 1
        assert versions == list(range(1, len(versions) + 1))
        assert said[-1] <= len(versions) <= said[-1] + 1, "at most the last one was published but not yet said"
        assert store.verify() == []
        assert not list((tmp_path / "staging").iterdir())
        assert not list((tmp_path / "claims").iterdir())
        published = len(versions)
    assert publish(store, "sql").version == published + 1


def test_files_kept_by_a_killed_process_are_swept(tmp_path: Path) -> None:
    code = (
        "import os, sys; from expert_store import ExpertStore; store = ExpertStore.open(sys.argv[1]); "
        "store.delete_version('sql', 1, keep_files=True); os.kill(os.getpid(), 9)"
    )
    store = ExpertStore.open(tmp_path)
    folder = publish(store, "sql", activate=False).folder
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment(), check=False)
    assert folder.is_dir()
    assert [problem.path for problem in store.verify()] == [folder]
    assert ExpertStore.open(tmp_path).verify() == []
    assert not folder.exists()


def test_the_store_needs_no_torch() -> None:
    code = "import sys, expert_store; sys.exit('torch' in sys.modules or 'server' in sys.modules)"
    source = Path(expert_store.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=source, check=False).returncode == 0
