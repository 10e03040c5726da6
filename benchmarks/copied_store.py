"""A server over a copy of somebody's store, which itself stays as it is, and which routers are ready there. Measures
nothing."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from server.own_server import OwnServer, own_server

_PRIVATE = ("staging", "claims", "*.lock")  # in the store's root: of the processes that use it
_PATIENCE_SECONDS = 600.0
_LOOK_SECONDS = 1.0


class NotMeasurable(Exception):
    """The server does not start, lacks a router, or answers nothing that could be measured."""


@contextmanager
def server_over_copy(store: Path, *flags: str) -> Iterator[OwnServer]:
    """For the main thread. Nobody may publish into the store while it is copied. Raises NotMeasurable."""
    if not (store / "catalog.json").is_file():
        raise NotMeasurable(f"--store {store}: it has no catalog.json, so it is no expert store")
    with TemporaryDirectory() as folder, ExitStack() as stack:
        copy_store(store, Path(folder) / "store")
        try:
            server = stack.enter_context(own_server(Path(folder), "--no-demo", *flags))
        except RuntimeError as error:
            raise NotMeasurable(str(error)) from error
        yield server


def copy_store(store: Path, copy: Path) -> None:
    """All but what belongs to the processes that use the store; an expert may have any of those names."""

    def private(folder: str, names: list[str]) -> set[str]:
        at_root = Path(folder) == store
        return {name for name in names if at_root and any(fnmatch(name, pattern) for pattern in _PRIVATE)}

    shutil.copytree(store, copy, ignore=private)


def require_routers(client: httpx.Client, names: Sequence[str], *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
    """Waits until nothing is being made for them any more, so that all that is measured has the same experts.

    Raises NotMeasurable, which says what each lacks and what to run.
    """
    until = time.monotonic() + patience_seconds
    routers = _routers(client, names)
    while pending := [one for one in routers if one["pending"]]:
        if time.monotonic() >= until:
            raise NotMeasurable("\n".join(_waits(one, patience_seconds) for one in pending))
        time.sleep(min(_LOOK_SECONDS, patience_seconds))
        routers = _routers(client, names)
    lacking = [one for one in routers if not one["ready"]]
    if lacking:
        raise NotMeasurable("\n".join(map(_lack, lacking)))


def _routers(client: httpx.Client, names: Sequence[str]) -> list[Mapping[str, Any]]:
    answer = client.get("/routers")
    answer.raise_for_status()
    return [one for one in answer.json()["routers"] if one["router"] in names]


def _waits(router: Mapping[str, Any], seconds: float) -> str:
    why = "".join(f"; {problem}" for problem in router["problems"])
    return f"router {router['router']} still waits for {router['pending']} centroids after {seconds:g} s{why}"


def _lack(router: Mapping[str, Any]) -> str:
    mend = "" if router["run"] is None else f": run `{router['run']}`"
    return f"router {router['router']} is not ready: {'; '.join(router['missing'])}{mend}"
