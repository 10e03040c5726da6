"""Changes a running server's experts over HTTP, as `relay experts` and curl would. Measures nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.generation import body
from expert_store import ADAPTER_FILES, Indicators, ManifestDraft

_MANIFEST = ManifestDraft(indicators=Indicators()).to_bytes().decode()


class RouteFailed(Exception):
    """A route of the server refused what it was to do, or did not do it in time."""


class Lifecycle:
    """The server's routes for experts, and the adapters to register. Raises RouteFailed and httpx.HTTPError."""

    def __init__(self, client: httpx.Client, adapters: Sequence[Path]) -> None:
        self._client = client
        self._files = [
            {name.partition(".")[0]: (folder / name).read_bytes() for name in ADAPTER_FILES} for folder in adapters
        ]

    def register(self, name: str, adapter: int, *, activate: bool = True) -> int:
        """The number of the new version."""
        form = {"name": name, "activate": str(activate).lower(), "manifest": _MANIFEST}
        return int(self._sent("POST", "/experts", data=form, files=self._files[adapter])["version"])

    def move(self, name: str, version: int) -> None:
        self._sent("PUT", f"/experts/{name}/aliases/live", json={"version": version})

    def delete(self, name: str, version: int) -> None:
        self._sent("DELETE", f"/experts/{name}/versions/{version}")

    def retire(self, name: str, version: int) -> None:
        """Deletes the version that is live."""
        self._sent("DELETE", f"/experts/{name}/aliases/live")
        self.delete(name, version)

    def asked(self, prompt: str) -> set[str]:
        """The references that a dry run of the chain has asked."""
        considered = self._sent("POST", "/route", json={"prompt": prompt, "router": "chain"})["routing"]["considered"]
        return {f"{one['expert']}@{one['version']}" for one in considered}

    def answer(self, ref: str, prompt: str, max_new_tokens: int) -> str:
        text: str = self._sent("POST", "/generate", json=body(ref, prompt, max_new_tokens))["text"]
        return text

    def _sent(self, method: str, path: str, **content: Any) -> Any:
        response = self._client.request(method, path, **content)
        if not response.is_success:
            raise RouteFailed(f"{method} {path}: {response.status_code}: {response.text[:200]}")
        return response.json()
