"""What the routes work with once the server is up. Knows neither how it is built nor when."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request

from server.errors import InvalidRequest, NotReady
from server.metrics import Metrics
from server.registry import Registry
from server.router_registry import RouterRegistry
from server.routing.base import RouterName
from server.service import Service


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The collaborators of the routes, whole or not there at all."""

    service: Service
    registry: Registry
    router_registry: RouterRegistry
    metrics: Metrics
    engine_alive: Callable[[], bool]
    default_router: RouterName
    default_shortlist: int
    default_guard: bool
    base_id: str
    started_at: datetime
    max_new_tokens: int
    max_upload_bytes: int

    def shortlist(self, wanted: int | None) -> int:
        """How many experts a request's chain may ask beside those without a profile; 0 is all."""
        return self.default_shortlist if wanted is None else wanted

    def guard(self, wanted: bool | None) -> bool:
        """Whether a request's chain leaves out experts whose guards do not know such prompts."""
        return self.default_guard if wanted is None else wanted

    def check_new_tokens(self, field: str, value: int) -> None:
        """Raises InvalidRequest where a request's field asks for more new tokens than this server generates."""
        if value > self.max_new_tokens:
            raise InvalidRequest(
                f"{field} is {value}, this server generates at most {self.max_new_tokens}: "
                "ask for less, or start it with a larger --max-new-tokens",
                param=field,
            )


def try_serving(request: Request) -> Serving | None:
    """None while the server starts up or shuts down."""
    serving = getattr(request.app.state, "serving", None)
    assert serving is None or isinstance(serving, Serving), "app.state.serving is something else. This is a bug."
    return serving


def require_serving(request: Request) -> Serving:
    """Raises NotReady."""
    serving = try_serving(request)
    if serving is None:
        raise NotReady
    return serving


Ready = Annotated[Serving, Depends(require_serving)]
