"""Health and metrics for whoever operates the server. Knows no requests and no experts."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.answer_schemas import HealthResponse
from server.api.openapi import errors
from server.api.serving import Ready, try_serving
from server.errors import EngineStopped

router = APIRouter(tags=["operation"])

_OK = HealthResponse(status="ok")
_STOPPED = "the engine has stopped: restart the server and see its log for the cause"


@router.get("/livez", responses=errors(503))
async def livez(request: Request) -> HealthResponse:
    """200 unless the engine has died; a server that is still starting is alive."""
    serving = try_serving(request)
    if serving is not None and not serving.engine_alive():
        raise EngineStopped(_STOPPED)
    return _OK


@router.get("/readyz", responses=errors(503))
async def readyz(serving: Ready) -> HealthResponse:
    """200 once requests can be served."""
    if not serving.engine_alive():
        raise EngineStopped(_STOPPED)
    return _OK


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus metrics."}, **errors(503)},
)
async def metrics(request: Request, serving: Ready) -> Response:
    """Everything Prometheus should scrape."""
    body, content_type = serving.metrics.exposition(request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})
