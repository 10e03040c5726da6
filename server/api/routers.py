"""`/routers`: which routers could decide, and what the others lack; a learned one from elsewhere. Decides nothing."""

from fastapi import APIRouter, Request

from server.api.answer_schemas import RouterList, RouterRegistrationResponse
from server.api.openapi import errors, router_request
from server.api.serving import Ready
from server.api.upload import receive_router
from server.api.views import router_list, router_registration_response

router = APIRouter(tags=["routers"])


@router.get("/routers", responses=errors(503))
async def list_routers(serving: Ready) -> RouterList:
    """Every router, ready or not, on the catalog of this moment."""
    statuses, generation = serving.service.router_statuses()
    return router_list(statuses, serving.default_router, generation)


@router.post(
    "/routers/learned",
    status_code=201,
    responses=errors(400, 413, 415, 429, 503, 507),
    openapi_extra=router_request(),
)
async def register_router(request: Request, serving: Ready) -> RouterRegistrationResponse:
    """Registers what `relay train router` wrote; it is in use from the next request on."""
    async with serving.registry.stage() as staged:
        draft = await receive_router(request, staged.folder, max_upload_bytes=serving.max_upload_bytes)
        registration = await serving.router_registry.register(staged, draft)
    return router_registration_response(registration)
