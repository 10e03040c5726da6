"""`GET /routers`: which routers could decide, and what the others lack. Decides nothing."""

from fastapi import APIRouter

from server.api.openapi import errors
from server.api.schemas import RouterList
from server.api.serving import Ready
from server.api.views import router_list

router = APIRouter(tags=["routers"])


@router.get("/routers", responses=errors(503))
async def list_routers(serving: Ready) -> RouterList:
    """Every router, ready or not, on the catalog of this moment."""
    statuses, generation = serving.service.router_statuses()
    return router_list(statuses, serving.default_router, generation)
