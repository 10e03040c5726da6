"""Asks a running server over HTTP. Knows routes and error bodies; prints nothing."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from expert_store import ADAPTER_FILES, MANIFEST_FILE, PROFILE_FILE
from server.errors import RelayError

_TIMEOUT = httpx.Timeout(300.0, connect=5.0)


class ClientError(RelayError):
    """The server is not there, or it refused."""


def route(url: str, text: str, *, router: str | None, shortlist: int | None) -> dict[str, Any]:
    """The decision for one prompt. Raises ClientError."""
    given = {"router": router, "shortlist": shortlist}
    return _call("POST", url, "/route", json={"prompt": text} | {k: v for k, v in given.items() if v is not None})


def list_experts(url: str) -> dict[str, Any]:
    """Raises ClientError."""
    return _call("GET", url, "/experts")


def show_expert(url: str, name: str) -> dict[str, Any]:
    """Raises ClientError."""
    return _call("GET", url, f"/experts/{_segment(name)}")


def add_expert(url: str, folder: Path, *, name: str | None, activate: bool) -> dict[str, Any]:
    """Registers the adapter in `folder`, with manifest.json and profile beside it if they are there.

    Raises ClientError.
    """
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for file_name in (*ADAPTER_FILES, PROFILE_FILE, MANIFEST_FILE):
            path = folder / file_name
            if path.is_file():
                field = "manifest" if file_name == MANIFEST_FILE else path.stem
                files[field] = (file_name, stack.enter_context(path.open("rb")), "application/octet-stream")
            elif file_name in ADAPTER_FILES:
                raise ClientError(f"{path} is not there: {folder} must hold what PEFT's save_pretrained writes")
        fields = {"activate": "true" if activate else "false"} | ({} if name is None else {"name": name})
        return _call("POST", url, "/experts", data=fields, files=files)


def _segment(name: str) -> str:
    """One segment of a path, whatever is in it."""
    return str(httpx.URL("/").copy_with(path=f"/{name}").raw_path, "ascii").lstrip("/").replace("/", "%2F")


def _call(method: str, url: str, path: str, **content: Any) -> dict[str, Any]:
    try:
        response = httpx.request(method, url + path, timeout=_TIMEOUT, **content)
    except httpx.ConnectError as error:
        raise ClientError(
            f"no server answers at {url}: start one with `relay serve`, or say where it is with --url or RELAY_URL"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ClientError(f"{url} could not be asked: {error}") from error
    return _answer(response, url)


def _answer(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.is_success and isinstance(body, dict):
        return body
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        raise ClientError(f"{body['error'].get('message')} ({response.status_code} {body['error'].get('code')})")
    raise ClientError(f"{url} answered {response.status_code}, but not as a LoRA Relay server does: is it one?")
