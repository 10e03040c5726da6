"""The expert pool over HTTP: register, look, delete, point aliases, set chain and fallback. Decides nothing itself."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request

from expert_store import Catalog, Expert, UnknownExpert
from server.api.answer_schemas import (
    AliasResponse,
    ChainResponse,
    DeletedVersion,
    ExpertList,
    ExpertRecord,
    FallbackResponse,
    RegistrationResponse,
    VersionRecord,
)
from server.api.body import read_json
from server.api.openapi import errors, json_request, registration_request
from server.api.request_schemas import AliasRequest, ChainRequest, FallbackRequest
from server.api.serving import Ready
from server.api.upload import receive_registration
from server.api.views import (
    chain_response,
    expert_list,
    expert_record,
    fallback_response,
    registration_response,
    version_record,
)

router = APIRouter(tags=["experts"])

# A name no expert has is unknown, whatever it looks like, so only its length is bounded here.
ExpertName = Annotated[str, Path(max_length=160)]
Number = Annotated[int, Path(ge=1, le=10**9)]


@router.post(
    "/experts",
    status_code=201,
    responses=errors(400, 413, 415, 429, 503, 507),
    openapi_extra=registration_request(),
)
async def register(request: Request, serving: Ready) -> RegistrationResponse:
    """Registers a PEFT adapter as the next version of an expert; it is routable with the next request."""
    registry = serving.registry
    async with registry.stage() as staged:
        form = await receive_registration(request, staged.folder, max_upload_bytes=serving.max_upload_bytes)
        registration = await registry.register(staged, form.draft, name=form.name, activate=form.activate)
    return registration_response(registration)


@router.get("/experts", responses=errors(503))
async def list_experts(serving: Ready) -> ExpertList:
    """Every expert, by name."""
    return expert_list(serving.registry.catalog)


@router.get("/experts/{name}", responses=errors(404, 503))
async def show_expert(serving: Ready, name: ExpertName) -> ExpertRecord:
    """One expert: what it is for, its versions and aliases."""
    catalog = serving.registry.catalog
    return expert_record(_expert(name, catalog), catalog)


@router.get("/experts/{name}/versions/{version}", responses=errors(404, 503))
async def show_version(serving: Ready, name: ExpertName, version: Number) -> VersionRecord:
    """One version with its whole manifest."""
    catalog = serving.registry.catalog
    expert = _expert(name, catalog)
    return version_record(expert, expert.select(str(version)), catalog)


@router.delete("/experts/{name}/versions/{version}", responses=errors(404, 409, 503, 507))
async def delete_version(serving: Ready, name: ExpertName, version: Number) -> DeletedVersion:
    """Takes a version out of the pool; requests that run on it finish with it."""
    catalog = await serving.registry.delete_version(name, version)
    return DeletedVersion(name=name, version=version, catalog_generation=catalog.generation)


@router.put(
    "/experts/{name}/aliases/{alias}",
    responses=errors(400, 404, 413, 415, 503, 507),
    openapi_extra=json_request(AliasRequest),
)
async def set_alias(
    serving: Ready,
    name: ExpertName,
    alias: ExpertName,
    body: Annotated[AliasRequest, Depends(read_json(AliasRequest))],
) -> AliasResponse:
    """Points an alias at a version: `live` to ship and to roll back."""
    catalog = await serving.registry.set_alias(name, alias, body.version)
    return AliasResponse(name=name, alias=alias, version=body.version, catalog_generation=catalog.generation)


@router.delete("/experts/{name}/aliases/{alias}", responses=errors(404, 503, 507))
async def remove_alias(serving: Ready, name: ExpertName, alias: ExpertName) -> AliasResponse:
    """Removes an alias; without `live` the chain passes the expert by."""
    catalog = await serving.registry.remove_alias(name, alias)
    return AliasResponse(name=name, alias=alias, version=None, catalog_generation=catalog.generation)


@router.get("/chain", responses=errors(503))
async def show_chain(serving: Ready) -> ChainResponse:
    """Who is asked, first to last."""
    return chain_response(serving.registry.catalog)


@router.put("/chain", responses=errors(400, 404, 409, 413, 415, 503, 507), openapi_extra=json_request(ChainRequest))
async def set_chain(serving: Ready, body: Annotated[ChainRequest, Depends(read_json(ChainRequest))]) -> ChainResponse:
    """Sets who is asked, first to last."""
    return chain_response(await serving.registry.set_chain(body.order, expected_generation=body.generation))


@router.get("/fallback", responses=errors(503))
async def show_fallback(serving: Ready) -> FallbackResponse:
    """Who answers where nobody accepts."""
    return fallback_response(serving.registry.catalog)


@router.put(
    "/fallback", responses=errors(400, 404, 413, 415, 422, 503, 507), openapi_extra=json_request(FallbackRequest)
)
async def set_fallback(
    serving: Ready, body: Annotated[FallbackRequest, Depends(read_json(FallbackRequest))]
) -> FallbackResponse:
    """Sets who answers where nobody accepts."""
    return fallback_response(await serving.registry.set_fallback(body.expert))


def _expert(name: str, catalog: Catalog) -> Expert:
    if name not in catalog.experts:
        raise UnknownExpert(name)
    return catalog.experts[name]
