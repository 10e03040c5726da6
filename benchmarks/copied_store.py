"""A server over a copy of somebody's store, which itself stays as it is, and which routers are ready there. Measures
nothing."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from server.own_server import OwnServer, own_server

_PRIVATE = ("staging", "claims", "*.lock")  # of the processes that use the store


class NotMeasurable(Exception):
    """The server does not start, lacks a router, or answers nothing that could be measured."""


@contextmanager
def server_over_copy(store: Path, *flags: str) -> Iterator[OwnServer]:
    """For the main thread. Nobody may publish into the store while it is copied. Raises NotMeasurable."""
    if not (store / "catalog.json").is_file():
        raise NotMeasurable(f"--store {store}: it has no catalog.json, so it is no expert store")
    with TemporaryDirectory() as folder, ExitStack() as stack:
        shutil.copytree(store, Path(folder) / "store", ignore=shutil.ignore_patterns(*_PRIVATE))
        try:
            server = stack.enter_context(own_server(Path(folder), "--no-demo", *flags))
        except RuntimeError as error:
            raise NotMeasurable(str(error)) from error
        yield server


def require_routers(client: httpx.Client, names: Sequence[str]) -> None:
    """Raises NotMeasurable, which says what each lacks and what to run."""
    answer = client.get("/routers")
    answer.raise_for_status()
    lacking = [one for one in answer.json()["routers"] if one["router"] in names and not one["ready"]]
    if lacking:
        raise NotMeasurable("\n".join(map(_lack, lacking)))


def _lack(router: Mapping[str, Any]) -> str:
    mend = "" if router["run"] is None else f": run `{router['run']}`"
    return f"router {router['router']} is not ready: {'; '.join(router['missing'])}{mend}"
