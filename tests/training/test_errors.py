"""Errors come back whole from the process of a unit."""

import pickle
from pathlib import Path

import pytest

from training.errors import Diverged, InvalidData, InvalidRun, TrainingError
from training.evaluate.pool import AskingFailed
from training.evaluate.units import UnitFailed


@pytest.mark.parametrize(
    "error",
    [
        TrainingError("wrong"),
        InvalidRun("wrong"),
        Diverged("wrong"),
        UnitFailed("wrong"),
        AskingFailed("wrong"),
        InvalidData(Path("rows.jsonl"), [(number, "empty") for number in range(30)]),
        InvalidData(Path("rows.jsonl"), [(None, "cannot be read")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_survives_the_way_between_processes(error: TrainingError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
