"""A real Prometheus with the repository's scrape configuration, over loopback. Knows no metric and no dashboard."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from tests.docker.files import prometheus_config

PROGRAM = shutil.which("prometheus")
_START_SECONDS = 60
_TARGET_SECONDS = 30


class PrometheusError(Exception):
    """What Prometheus says against a query."""


class Prometheus:
    """Scrapes one server once a second from entering to leaving."""

    def __init__(self, folder: Path, *, server_url: str) -> None:
        self._folder = folder
        self._server_url = server_url
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{listener.getsockname()[1]}"
        self._client = httpx.Client(base_url=f"http://{self._address}/api/v1", timeout=30, trust_env=False)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        return self._ask("query", {"query": expression})

    def query_range(self, expression: str, *, seconds: int) -> list[dict[str, Any]]:
        """The series over the last seconds."""
        now = time.time()
        return self._ask("query_range", {"query": expression, "start": now - seconds, "end": now, "step": 1})

    def scrape(self) -> bytes:
        """The server's metrics as text."""
        return httpx.get(f"{self._server_url}/metrics", trust_env=False).raise_for_status().content

    def __enter__(self) -> Self:
        assert PROGRAM is not None
        config = self._folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._retargeted()))
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    PROGRAM,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address={self._address}",
                ],
                stdout=log,
                stderr=log,
            )
        self._wait_until(lambda: self._status("/-/ready") == httpx.codes.OK, _START_SECONDS)
        self._wait_until(lambda: self.query('up{job="lora-relay"} == 1') != [], _TARGET_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=30)
        self._client.close()

    def _retargeted(self) -> dict[str, Any]:
        config = prometheus_config()
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s"}
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [self._server_url.removeprefix("http://")]}]
        return config

    def _ask(self, kind: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self._client.post(f"/{kind}", data=parameters).json()
        if answer["status"] != "success":
            raise PrometheusError(f"{parameters['query']}: {answer['error']}")
        result = answer["data"]["result"]
        assert isinstance(result, list)
        return result

    def _status(self, path: str) -> int | None:
        try:
            return self._client.get(f"http://{self._address}{path}").status_code
        except httpx.TransportError:
            return None

    def _wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            log = self._folder / "prometheus.log"
            assert self._process is not None
            assert self._process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
