"""Units are made once, after their parents, and go on where they were cut off."""

import json
import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from training.evaluate.adapters import ADAPTER, SeeExpert, TunedLora
from training.evaluate.budget import BUDGETS
from training.evaluate.stream import Sample
from training.evaluate.units import BaseSource, Spent, Unit, UnitFailed, Workshop, processes

BUDGET = replace(BUDGETS["small"], rank=2, epochs=2, batch_size=4)


def rows(word: str, count: int = 16) -> tuple[Sample, ...]:
    return tuple(Sample(f"{word}/{i}", word, f"the {word} {i}", f"{word} {i % 3}") for i in range(count))


@dataclass(frozen=True, eq=False)
class Sum:
    """Adds up its parents and itself; fails as long as a file is there."""

    value: int
    parents: tuple["Sum", ...] = ()
    broken: Path | None = None
    cost: int = 1
    name: str = "sum"

    def identity(self) -> Mapping[str, Any]:
        return {"value": self.value}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:  # noqa: ARG002
        with (folder / "made").open("a") as file:
            file.write("x")
        if self.broken is not None and self.broken.exists():
            raise RuntimeError("broken")
        before = [json.loads((parent / "sum.json").read_text()) for parent in parents]
        (folder / "sum.json").write_text(json.dumps(self.value + sum(before)))


@dataclass(frozen=True, eq=False)
class Fatal(Sum):
    """Ends its process, as the system does that wants its memory."""

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:  # noqa: ARG002
        os.kill(os.getpid(), signal.SIGKILL)


def run(workshop: Workshop, *units: Unit) -> list[Unit]:
    done: list[Unit] = []
    with ThreadPoolExecutor(2) as executor:
        workshop.run(units, executor, on_done=done.append)
    return done


def times_made(workshop: Workshop, unit: Unit) -> int:
    return len((workshop.folder(unit) / "made").read_text())


def test_equal_inputs_are_one_unit_and_parents_come_first(workshop: Workshop) -> None:
    root = Sum(1)
    left, right = Sum(10, (root,)), Sum(10, (Sum(1),))
    assert workshop.key(left) == workshop.key(right) != workshop.key(root)
    top = Sum(100, (left, root))
    assert run(workshop, top, right) == [root, left, top]
    assert json.loads((workshop.folder(top) / "sum.json").read_text()) == 112
    assert workshop.seconds(top) >= 0


def test_the_base_and_every_input_are_part_of_the_key(workshop: Workshop, base_source: BaseSource) -> None:
    other = Workshop(workshop.folder(Sum(1)).parent, replace(base_source, fingerprint="sha256:other"))
    assert len({workshop.key(Sum(1)), workshop.key(Sum(2)), workshop.key(Sum(1, (Sum(2),))), other.key(Sum(1))}) == 4


def test_a_failure_ends_the_run_and_what_was_done_stays_done(workshop: Workshop, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    good = Sum(1)
    bad = Sum(2, (good,), broken)
    late = Sum(3, (bad,))
    with pytest.raises(RuntimeError, match="broken"):
        run(workshop, late)
    assert workshop.is_done(good)
    assert not workshop.is_done(bad)
    broken.unlink()
    assert run(workshop, late) == [bad, late]
    assert (times_made(workshop, good), times_made(workshop, bad)) == (1, 2)
    assert run(workshop, late) == []


class CutOff(Spent):
    """Interrupts the training after some steps."""

    def __init__(self, folder: Path, after: int) -> None:
        super().__init__(folder)
        self.losses: list[float] = []
        self._after = after

    def step(self, *, loss: float, tokens: int) -> None:
        if len(self.losses) == self._after:
            raise KeyboardInterrupt
        self.losses.append(loss)
        super().step(loss=loss, tokens=tokens)


@pytest.mark.parametrize("kind", ["lora", "see"])
def test_an_adapter_that_was_cut_off_goes_on_to_the_same_weights(
    base_source: BaseSource, tmp_path: Path, kind: str
) -> None:
    budget = replace(BUDGET, epochs=4)
    unit: Unit = TunedLora("jump", rows("jump"), budget, seed=1)
    if kind == "see":
        unit = SeeExpert("jump", rows("jump"), rows("lazy", 8), "alora", budget, seed=1)
    folders = [tmp_path / name for name in ("whole", "cut")]
    for folder in folders:
        folder.mkdir()
    whole = CutOff(folders[0], after=1000)
    unit.make(base_source, [], folders[0], whole)
    with pytest.raises(KeyboardInterrupt):
        unit.make(base_source, [], folders[1], CutOff(folders[1], after=13))
    rest = CutOff(folders[1], after=1000)
    unit.make(base_source, [], folders[1], rest)
    assert rest.losses == whole.losses[10:], "it went on from the checkpoint after ten steps"
    first, second = ((folder / ADAPTER / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert first == second
    assert rest.seconds() > 0


def test_a_process_that_is_killed_ends_the_run_in_words(workshop: Workshop) -> None:
    with processes(1) as executor, pytest.raises(UnitFailed, match=r"memory.*--jobs 1"):
        workshop.run([Fatal(1)], executor, on_done=lambda _: None)
