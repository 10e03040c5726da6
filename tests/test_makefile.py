"""What `make` hands on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ([], ""),
        (["PORT=9000"], "--port 9000"),
        (["HOST=::1"], "--host ::1"),
        (["HOST=0.0.0.0", "PORT=1"], "--host 0.0.0.0 --port 1"),
    ],
)
def test_serve_takes_host_and_port_from_its_own_command_line_alone(arguments: list[str], flags: str) -> None:
    environment = {**os.environ, "HOST": "my-machine", "PORT": "5"}
    command = ["make", "--dry-run", "--old-file=install", "serve", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    [line] = [line for line in done.stdout.splitlines() if "relay serve" in line]
    assert line.split() == [".venv/bin/relay", "serve", *flags.split()]
