"""Asks a running server over HTTP. Knows routes and error bodies; prints nothing."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from expert_store import ADAPTER_FILES, CENTROID_FILE, GATE_FILES, GATE_FOLDER, MANIFEST_FILE, PROFILE_FILE, ROUTER_FILE
from server.errors import RelayError

_FILE_FIELDS = ("adapter_config", "adapter_model", "gate_config", "gate_weights")
_FIELDS = dict(zip((*ADAPTER_FILES, *GATE_FILES), _FILE_FIELDS, strict=True))
_TIMEOUT = httpx.Timeout(300.0, connect=5.0)


class ClientError(RelayError):
    """The server is not there, or it refused."""


def route(
    url: str,
    text: str,
    *,
    router: str | None,
    shortlist: int | None,
    guard: bool | None = None,
    shadow: Sequence[str] = (),
) -> dict[str, Any]:
    """The decision for one prompt. Raises ClientError."""
    given = {"router": router, "shortlist": shortlist, "guard": guard, "shadow": list(shadow) or None}
    return _call("POST", url, "/route", json={"prompt": text} | {k: v for k, v in given.items() if v is not None})


def generate(url: str, text: str, **given: Any) -> dict[str, Any]:
    """The answer to one prompt, with who gave it; fields that are None are the server's. Raises ClientError."""
    return _call("POST", url, "/generate", json={"prompt": text} | {k: v for k, v in given.items() if v is not None})


def list_routers(url: str) -> dict[str, Any]:
    """Raises ClientError."""
    return _call("GET", url, "/routers")


def add_router(url: str, folder: Path) -> dict[str, Any]:
    """Registers the learned router in `folder`. Raises ClientError."""
    paths = {"router": folder / ROUTER_FILE, "manifest": folder / MANIFEST_FILE}
    for path in paths.values():
        if not path.is_file():
            raise ClientError(f"{path} is not there: {folder} must hold what `relay train router` writes")
    with ExitStack() as stack:
        return _call("POST", url, "/routers/learned", files=_opened(paths, stack))


def list_experts(url: str) -> dict[str, Any]:
    """Raises ClientError."""
    return _call("GET", url, "/experts")


def show_expert(url: str, name: str) -> dict[str, Any]:
    """Raises ClientError."""
    return _call("GET", url, f"/experts/{_segment(name)}")


def set_alias(url: str, name: str, alias: str, version: int) -> dict[str, Any]:
    """Points an alias at a version. Raises ClientError."""
    return _call("PUT", url, f"/experts/{_segment(name)}/aliases/{_segment(alias)}", json={"version": version})


def remove_alias(url: str, name: str, alias: str) -> dict[str, Any]:
    """Raises ClientError."""
    return _call("DELETE", url, f"/experts/{_segment(name)}/aliases/{_segment(alias)}")


def delete_version(url: str, name: str, version: int) -> dict[str, Any]:
    """Raises ClientError."""
    return _call("DELETE", url, f"/experts/{_segment(name)}/versions/{version}")


def show_chain(url: str) -> dict[str, Any]:
    """Raises ClientError."""
    return _call("GET", url, "/chain")


def set_chain(url: str, order: Sequence[str], generation: int | None) -> dict[str, Any]:
    """With `generation` only if the catalog is still at that one. Raises ClientError."""
    wanted = {} if generation is None else {"generation": generation}
    return _call("PUT", url, "/chain", json={"order": list(order), **wanted})


def show_fallback(url: str) -> dict[str, Any]:
    """Raises ClientError."""
    return _call("GET", url, "/fallback")


def set_fallback(url: str, name: str | None) -> dict[str, Any]:
    """None leaves it to the base model. Raises ClientError."""
    return _call("PUT", url, "/fallback", json={"expert": name})


def add_expert(url: str, folder: Path, *, name: str | None, activate: bool) -> dict[str, Any]:
    """Registers the adapter in `folder`, with the gate, profile, centroid and manifest.json beside it if there.

    Raises ClientError.
    """
    with ExitStack() as stack:
        files = _opened(_files_to_send(folder), stack)
        fields = {"activate": "true" if activate else "false"} | ({} if name is None else {"name": name})
        return _call("POST", url, "/experts", data=fields, files=files)


def _opened(paths: Mapping[str, Path], stack: ExitStack) -> dict[str, Any]:
    """Form field to what httpx sends, open until the stack ends."""
    return {
        field: (path.name, stack.enter_context(path.open("rb")), "application/octet-stream")
        for field, path in paths.items()
    }


def _files_to_send(folder: Path) -> dict[str, Path]:
    """Form field to file. Raises ClientError where one of a pair is missing."""
    wanted = (*ADAPTER_FILES, *GATE_FILES) if (folder / GATE_FOLDER).exists() else ADAPTER_FILES
    files = {_FIELDS[name]: folder / name for name in wanted}
    for path in files.values():
        if not path.is_file():
            raise ClientError(f"{path} is not there: {path.parent} must hold what PEFT's save_pretrained writes")
    beside = {"manifest": MANIFEST_FILE, "profile": PROFILE_FILE, "centroid": CENTROID_FILE}
    return files | {field: folder / name for field, name in beside.items() if (folder / name).is_file()}


def _segment(name: str) -> str:
    """One segment of a path, whatever is in it. Raises ClientError for what no URL can hold."""
    try:
        path = httpx.URL("/").copy_with(path=f"/{name}").raw_path
    except httpx.InvalidURL as error:
        raise ClientError(f"{name[:80]!r} cannot be the name of an expert, a version or an alias: {error}") from error
    return str(path, "ascii").lstrip("/").replace("/", "%2F")


def _call(method: str, url: str, path: str, **content: Any) -> dict[str, Any]:
    try:
        response = httpx.request(method, url + path, timeout=_TIMEOUT, **content)
    except httpx.ConnectError as error:
        raise ClientError(
            f"no server answers at {url}: start one with `relay serve`, or say where it is with --url or RELAY_URL"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: a host that IDNA does not know
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
