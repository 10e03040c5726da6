"""A router that this server knows by name and cannot run. Says what is missing; decides nothing."""

from typing import NoReturn

from expert_store import Catalog
from server.errors import RouterNotReady
from server.routing.base import RouterStatus


class AbsentRouter:
    """Never ready, for the one reason given."""

    def __init__(self, status: RouterStatus) -> None:
        assert not status.ready, "an absent router must say what it lacks. This is a bug."
        self._status = status

    def status(self, catalog: Catalog) -> RouterStatus:  # noqa: ARG002 - no catalog makes it ready
        return self._status

    def plan(self, catalog: Catalog) -> NoReturn:  # noqa: ARG002
        raise RouterNotReady(self._status.router, missing=self._status.missing, way_out=self._status.way_out)
