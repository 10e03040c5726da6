"""The engine's share of the processors, and what is left to every other thread."""

import os
import subprocess
import sys

import pytest

from server.threads import POLICY_VARIABLE, SPINS_VARIABLE, VARIABLE, leave_processors_to_engine, spin_briefly


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    for variable in (SPINS_VARIABLE, POLICY_VARIABLE):
        monkeypatch.setenv(variable, "")  # so that it is put back afterwards
        monkeypatch.delenv(variable)


def test_the_engine_takes_every_processor_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert leave_processors_to_engine(0) == len(os.sched_getaffinity(0))
    monkeypatch.setenv(VARIABLE, "5")
    assert leave_processors_to_engine(0) == 5
    monkeypatch.setenv(VARIABLE, "5")
    assert leave_processors_to_engine(3) == 3
    assert os.environ[VARIABLE] == "1"


@pytest.mark.parametrize("nonsense", ["many", "-2", "4,2"])
def test_a_declaration_that_is_no_number_is_left_aside(nonsense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, nonsense)
    assert leave_processors_to_engine(0) == len(os.sched_getaffinity(0))


def test_threads_spin_briefly_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_processors_to_engine(0)
    assert os.environ["GOMP_SPINCOUNT"] == "2000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    spin_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    spin_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_torch_starts_with_one_thread_and_only_the_asking_thread_gets_more() -> None:
    program = """
from server.threads import leave_processors_to_engine, take_processors
leave_processors_to_engine(2)
import threading, torch
seen = []
def engine():
    take_processors(2)
    seen.append(torch.get_num_threads())
thread = threading.Thread(target=engine)
thread.start()
thread.join()
other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
other.start()
other.join()
print(*seen, torch.get_num_threads())
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.split() == ["2", "1", "1"]


def test_the_command_line_is_there_before_torch() -> None:
    program = "import sys, server.cli; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.split() == ["False"]
