"""A server for one measurement: its own process, store and port on loopback. Measures nothing."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

_START_SECONDS = 300


@dataclass(frozen=True)
class OwnServer:
    """Where it answers, and its process."""

    url: str
    pid: int

    def peak_resident_bytes(self) -> int:
        """The most memory the process has had resident at any moment. Linux only."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@contextmanager
def own_server(folder: Path, *flags: str) -> Iterator[OwnServer]:
    """A server, ready to answer, whose store is `folder`/store; it ends with the block, also where this is terminated.

    For the main thread, which alone may say what a signal does.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "server", "serve", "--port", str(port), "--store", str(folder / "store"), *flags]
    with (
        _terminated_as_exit(),
        (folder / "server.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url, process, folder / "server.log")
            yield OwnServer(url, process.pid)
        finally:
            process.terminate()


@contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """SIGTERM unwinds the stack as ctrl-C does, instead of leaving the server behind."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with httpx.Client() as client:  # one for all tries: a new one reads certificates, for as long as it waits
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if client.get(f"{url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.3)
    raise RuntimeError(f"the server did not become ready: {log.read_text()[-2000:]}")
