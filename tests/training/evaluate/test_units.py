"""Units are made once, after their parents, and go on where they were cut off."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from expert_store import inspect_adapter, parse_draft
from tests.support.tiny import write_adapter
from training.errors import InvalidData
from training.evaluate.adapters import ADAPTER, GatedLora, SeeExpert, TunedLora
from training.evaluate.budget import BUDGETS
from training.evaluate.stream import Sample
from training.evaluate.units import BaseSource, Spent, Unit, UnitFailed, Workshop, processes
from training.output import CHECKPOINTS
from training.selection import Wake

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


@dataclass(frozen=True, eq=False)
class Empty(Sum):
    """Has nothing to be trained on."""

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:  # noqa: ARG002
        raise InvalidData(folder / "rows.jsonl", [(3, "empty")])


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
    sources = [replace(base_source, fingerprint="sha256:other"), replace(base_source, trained_in="float32 on cpu")]
    others = [Workshop(workshop.folder(Sum(1)).parent, source).key(Sum(1)) for source in sources]
    assert len({workshop.key(Sum(1)), workshop.key(Sum(2)), workshop.key(Sum(1, (Sum(2),))), *others}) == 5


def test_what_serves_a_base_is_part_of_an_answers_key_but_not_of_a_units(base_source: BaseSource) -> None:
    on_gpu = replace(base_source, served_in="bfloat16 on cuda")
    here, there = (Workshop(base_source.cache, source) for source in (base_source, on_gpu))
    assert here.key(Sum(1)) == there.key(Sum(1))
    assert here.served_base == base_source.fingerprint != there.served_base


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


def test_the_same_work_under_two_names_lies_in_two_folders(workshop: Workshop) -> None:
    first, second = Sum(1, name="first"), Sum(1, name="second")
    assert workshop.key(first) == workshop.key(second)
    above = Sum(10, (first, second))
    *both, last = run(workshop, first, above)  # two at a time: which of the first two ends first is not said
    assert last is above
    assert sorted(unit.name for unit in both) == ["first", "second"]
    assert workshop.folder(first) != workshop.folder(second)
    assert (times_made(workshop, first), times_made(workshop, second)) == (1, 1)


@dataclass(frozen=True, eq=False)
class Careless(Sum):
    """Takes the result of its parent away."""

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:  # noqa: ARG002
        (parents[0] / "done.json").unlink()


def test_a_result_that_is_gone_ends_the_run_in_words(workshop: Workshop) -> None:
    root = Sum(1)
    above = Careless(10, (root,))
    with pytest.raises(UnitFailed, match="last: what they start from was removed"):
        run(workshop, Sum(100, (above, root), name="last"))


def test_bad_data_in_another_process_is_named(workshop: Workshop) -> None:
    with processes(1) as executor, pytest.raises(InvalidData, match="line 3: empty"):
        workshop.run([Empty(1)], executor, on_done=lambda _: None)


def test_an_adapter_cut_off_while_its_checkpoints_are_removed_comes_out_the_same(
    base_source: BaseSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the newest checkpoint are gone already, what tells that it is complete is not."""
    unit = TunedLora("jump", rows("jump"), replace(BUDGET, epochs=4), seed=1)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    unit.make(base_source, [], whole, Spent(whole))
    remove = shutil.rmtree

    def stop_halfway(folder: Path, **options: Any) -> None:
        weights = Path(folder) / "checkpoint-16" / "adapter_model.safetensors"
        if weights.exists():
            weights.unlink()
            raise KeyboardInterrupt
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", stop_halfway)
    with pytest.raises(KeyboardInterrupt):
        unit.make(base_source, [], cut, Spent(cut))
    monkeypatch.undo()
    unit.make(base_source, [], cut, Spent(cut))
    assert not [path.name for path in cut.iterdir() if CHECKPOINTS in path.name]
    file = f"{ADAPTER}/adapter_model.safetensors"
    assert (whole / file).read_bytes() == (cut / file).read_bytes()


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


@pytest.mark.parametrize("kind", ["lora", "see", "late", "gated"])
def test_an_adapter_that_was_cut_off_goes_on_to_the_same_weights(
    base_source: BaseSource, tmp_path: Path, kind: str
) -> None:
    budget = replace(BUDGET, epochs=4)
    unit: Unit = TunedLora("jump", rows("jump"), budget, seed=1)
    parents: list[Path] = []
    file = "adapter_model.safetensors"
    if kind in ("see", "late"):
        wake: Wake = "indicator" if kind == "late" else "prompt"
        unit = SeeExpert("jump", rows("jump"), rows("lazy", 8), "alora", budget, seed=1, wake=wake)
    elif kind == "gated":
        unit = GatedLora("jump", TunedLora("jump", (), budget, 1), rows("jump"), rows("lazy", 8), budget, seed=1)
        parents = [tmp_path]
        write_adapter(tmp_path / ADAPTER, Path(base_source.source), kind="lora")
        file = f"gate/{file}"
    folders = [tmp_path / name for name in ("whole", "cut")]
    for folder in folders:
        folder.mkdir()
    whole = CutOff(folders[0], after=1000)
    unit.make(base_source, parents, folders[0], whole)
    with pytest.raises(KeyboardInterrupt):
        unit.make(base_source, parents, folders[1], CutOff(folders[1], after=13))
    rest = CutOff(folders[1], after=1000)
    unit.make(base_source, parents, folders[1], rest)
    assert rest.losses == whole.losses[10:], "it went on from the checkpoint after ten steps"
    first, second = ((folder / ADAPTER / file).read_bytes() for folder in folders)
    assert first == second
    assert rest.seconds() > 0


def test_a_process_that_is_killed_ends_the_run_in_words(workshop: Workshop) -> None:
    with processes(1) as executor, pytest.raises(UnitFailed, match=r"memory.*--jobs 1"):
        workshop.run([Fatal(1)], executor, on_done=lambda _: None)


def test_a_run_that_is_killed_leaves_no_process_behind() -> None:
    program = (
        "import time; from training.evaluate.units import processes; executor = processes(1); "
        "executor.submit(time.sleep, 600); print(*executor._processes, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        made = int(run.stdout.readline())
        os.kill(made, 0)  # raises unless it is there
        run.kill()
        try:
            rest, _ = run.communicate(timeout=60)  # until nobody holds the output any more
        except subprocess.TimeoutExpired:
            os.kill(made, signal.SIGKILL)
            pytest.fail(f"process {made} outlives its run")
    assert rest == ""


def test_a_gated_lora_stays_itself_beside_its_gate(base_source: BaseSource, workshop: Workshop) -> None:
    lora = TunedLora("jump", rows("jump"), BUDGET, seed=1)
    gated = GatedLora("jump", lora, rows("jump"), rows("lazy", 8), BUDGET, seed=1)
    run(workshop, gated)
    folder = workshop.folder(gated) / ADAPTER
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / name).read_bytes() == (workshop.folder(lora) / ADAPTER / name).read_bytes()
    draft = parse_draft((folder / "manifest.json").read_bytes())
    assert draft.indicators is not None
    assert inspect_adapter(folder, base_source.load().spec, max_rank=8).gate is not None


def test_keys_of_experts_stay_as_they_were_before_there_were_late_ones(base_source: BaseSource, tmp_path: Path) -> None:
    """Work done lies in folders of these names."""
    workshop = Workshop(tmp_path, replace(base_source, fingerprint="sha256:fixed"))
    see = SeeExpert("jump", rows("jump"), rows("lazy", 8), "alora", BUDGET, seed=1)
    assert workshop.folder(see).name == "see-alora-jump-5ce3c761c12a33f6"
    assert workshop.folder(TunedLora("jump", rows("jump"), BUDGET, seed=1)).name == "lora-jump-592400909a96c3b2"
    assert workshop.key(replace(see, wake="indicator")) != workshop.key(see)
