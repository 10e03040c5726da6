"""A real `relay serve` in a process of its own, over loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

_START_SECONDS = 120


class RelayServer:
    """Started on entering, ended on leaving; may be killed and started again in between. `program` is what Python is to
    run as `relay`."""

    def __init__(
        self,
        *,
        store: Path,
        base: str,
        log: Path,
        flags: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "server"),
    ) -> None:
        self.store = store
        self._program = program
        self._arguments = ["--store", str(store), "--base", base, "--log-format", "json", *flags]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.client = httpx.Client(timeout=120)

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RELAY_")} | {"OMP_NUM_THREADS": "2"}
        with self._log.open("ab") as log:
            said_before = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, *self._program, "serve", "--host", "127.0.0.1", "--port", "0", *self._arguments],
                stdout=log,
                stderr=log,
                env=environment,
            )
        self._wait_until_ready(said_before)

    def kill(self) -> None:
        """kill -9: nothing gets to tidy up."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Asks it to end and returns its exit status."""
        return self._end(signal.SIGTERM)

    def ended(self) -> int:
        """Waits until it has ended by itself and returns its exit status."""
        assert self._process is not None
        return self._process.wait(timeout=60)

    def resident_bytes(self) -> int:
        """What the process holds in memory. Linux only."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])

    def get(self, path: str) -> Any:
        return self._json(self.client.get(self.url + path))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._json(self.client.post(self.url + path, json=body))

    def put(self, path: str, body: dict[str, Any]) -> Any:
        return self._json(self.client.put(self.url + path, json=body))

    def register(self, adapter: Path, name: str, manifest: dict[str, Any]) -> Any:
        files = {
            "adapter_config": (adapter / "adapter_config.json").read_bytes(),
            "adapter_model": (adapter / "adapter_model.safetensors").read_bytes(),
        }
        data = {"name": name, "manifest": json.dumps(manifest)}
        return self._json(self.client.post(self.url + "/experts", data=data, files=files))

    def stream(self, body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Server-sent events of a streamed generation."""
        with httpx.Client(timeout=300).stream("POST", self.url + "/generate", json={**body, "stream": True}) as answer:
            answer.raise_for_status()
            event = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield event, json.loads(line.removeprefix("data: "))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(signal.SIGKILL)
        self.client.close()

    def _end(self, how: signal.Signals) -> int:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(how)
        return self._process.wait(timeout=60)

    def _wait_until_ready(self, said_before: int) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            self.url = _listens_at(self._log.read_bytes()[said_before:])
            try:
                if self.url and self.client.get(self.url + "/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise TimeoutError(self._log.read_text()[-3000:])

    @staticmethod
    def _json(response: httpx.Response) -> Any:
        assert response.is_success, response.text
        return response.json()


def _listens_at(log: bytes) -> str:
    """The address that the server says it has taken; empty until then."""
    said = [json.loads(line) for line in log.splitlines() if line.startswith(b"{") and line.endswith(b"}")]
    return next((str(line["url"]) for line in said if line.get("event") == "ready"), "")
