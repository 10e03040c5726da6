"""Brings units into a running server: adapters registered, chain ordered, one pool mixed, one router in use. Asks
nothing."""

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from expert_store import BASE_ALIAS, LIVE, ROUTER_FILE, ExpertStore, RoutedExpert
from server.client import add_expert
from server.errors import RelayError
from training.errors import TrainingError
from training.evaluate.adapters import ADAPTER
from training.evaluate.l2r import ROUTER, read_draft
from training.evaluate.units import Unit, Workshop

_TIMEOUT = httpx.Timeout(600.0)


class AskingFailed(TrainingError):
    """The server refused what the bench asked of it."""


@dataclass(frozen=True)
class Place:
    """Where a server answers, and its own folder of experts, where routers are published."""

    url: str
    store: Path


class ServedPool:
    """A server that is the bench's alone, so that each unit is version 1 of an expert named by the unit's key.

    `start` is called when it is first needed.
    """

    def __init__(self, start: Callable[[], Place], workshop: Workshop) -> None:
        self._start = start
        self._workshop = workshop
        self._names: dict[str, str] = {}
        self._registering = threading.Lock()
        self._base_adapter: str | None = None
        self._mixed: frozenset[str] = frozenset()
        self._router: str | None = None

    def ready(self) -> None:
        """Starts the server, if it does not run yet; for the thread that may start one."""
        _ = self._client

    @cached_property
    def _place(self) -> Place:
        return self._start()

    @cached_property
    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self._place.url, timeout=_TIMEOUT)

    def key(self, unit: Unit) -> str:
        return self._workshop.key(unit)

    def folder(self, unit: Unit) -> Path:
        return self._workshop.folder(unit)

    def expert(self, unit: Unit) -> str:
        key = self.key(unit)
        with self._registering:
            if key not in self._names:
                name = f"u-{key}"
                try:
                    add_expert(self._place.url, self.folder(unit) / ADAPTER, name=name, activate=True)
                except RelayError as error:
                    raise AskingFailed(f"{self.folder(unit)} was not registered: {error.message}") from error
                self._names[key] = name
        return self._names[key]

    def order_chain(self, units: Sequence[Unit]) -> None:
        self.send("PUT", "/chain", {"order": [self.expert(unit) for unit in units]})

    def mix(self, base_adapter: Unit, experts: Sequence[Unit]) -> None:
        """Everybody live whose centroid fits the base adapter is mixed, so experts of other pools are not live then."""
        bearer = self.expert(base_adapter)
        if self._base_adapter not in (None, bearer):
            self.send("DELETE", f"/experts/{self._base_adapter}/aliases/{BASE_ALIAS}")
        self._point(bearer, BASE_ALIAS)
        self._base_adapter = bearer
        names = frozenset(self.expert(unit) for unit in experts)
        for name in self._mixed - names:
            self.send("DELETE", f"/experts/{name}/aliases/{LIVE}")
        for name in names - self._mixed:
            self._point(name, LIVE)
        self._mixed = names

    def route_by(self, router: Unit, experts: Sequence[Unit]) -> None:
        """Publishes the router over these experts, in the order it was trained over, unless it is in use."""
        key = self.key(router)
        if self._router == key:
            return
        names = [self.expert(unit) for unit in experts]
        store = ExpertStore.open(self._place.store)
        served = [store.catalog.experts[name].versions[1] for name in names]
        routed = tuple(RoutedExpert(name=e.name, version=e.version, digest=e.digest) for e in served)
        folder = self.folder(router)
        with store.stage() as staged:
            shutil.copyfile(folder / ROUTER / ROUTER_FILE, staged.folder / ROUTER_FILE)
            store.publish_router(staged, read_draft(folder).model_copy(update={"experts": routed}))
        self._router = key

    def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        response = self._client.request(method, path, json=None if body is None else dict(body))
        if not response.is_success:
            raise AskingFailed(f"{method} {path} was answered {response.status_code}: {response.text[:500]}")
        answer: dict[str, Any] = response.json()
        return answer

    def _point(self, name: str, alias: str) -> None:
        self.send("PUT", f"/experts/{name}/aliases/{alias}", {"version": 1})
