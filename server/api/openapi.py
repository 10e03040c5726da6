"""What the OpenAPI document says beyond the routes' signatures. Serves nothing itself."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.api.answer_schemas import ErrorResponse, example_error
from server.api.openai_schemas import ChatCompletionRequest, CompletionRequest
from server.api.request_schemas import AliasRequest, ChainRequest, FallbackRequest, GenerateRequest, PromptRequest

_REF = "#/components/schemas/{model}"
_REQUEST_MODELS = (
    AliasRequest,
    ChainRequest,
    ChatCompletionRequest,
    CompletionRequest,
    FallbackRequest,
    GenerateRequest,
    PromptRequest,
)
_TEXT = {"type": "string"}
_FILE = {"type": "string", "format": "binary"}
_ERRORS = {
    400: ("malformed_body", "The body cannot be read."),
    404: ("unknown_expert", "No such expert, version or alias."),
    409: ("version_in_use", "The state of the pool or of a router forbids it."),
    413: ("body_too_large", "The body is over the server's limit."),
    415: ("unsupported_media_type", "The content type is not one this route reads."),
    422: ("invalid_field", "A value that cannot be served; `param` names it."),
    429: ("too_busy", "Every place is taken; Retry-After says when to come back."),
    503: ("not_ready", "Starting up, shutting down, or the engine has stopped."),
    507: ("storage_full", "There is no room left on the server's disk."),
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers a route can give. 422 is always among them, in our shape instead of FastAPI's."""
    return {status: _error(status) for status in sorted({422, *statuses})}


def json_request(model: type[BaseModel]) -> dict[str, Any]:
    """A JSON body that a dependency reads, so FastAPI does not see it in the signature."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def registration_request() -> dict[str, Any]:
    """The multipart form of `POST /experts`."""
    properties = {
        "adapter_config": {**_FILE, "description": "PEFT's adapter_config.json; may be sent under that name too."},
        "adapter_model": {
            **_FILE,
            "description": "PEFT's adapter_model.safetensors; may be sent under that name too.",
        },
        "profile": {
            **_FILE,
            "description": "profile.safetensors as `relay train` wrote it; else made from samples.",
        },
        "centroid": {
            **_FILE,
            "description": "centroid.safetensors as `relay train elrea` wrote it; else made from samples.",
        },
        "gate_config": {**_FILE, "description": "adapter_config.json of a plain LoRA's gate."},
        "gate_weights": {**_FILE, "description": "adapter_model.safetensors of that gate; both or neither."},
        "name": {**_TEXT, "description": "The expert's name; wins over the manifest's."},
        "manifest": {**_TEXT, "description": "JSON: what `relay train` wrote as manifest.json; file or text."},
        "description": {**_TEXT, "description": "Wins over the manifest's."},
        "threshold": {**_TEXT, "description": "Accept at this score, between 0 and 1; wins over the manifest's."},
        "activate": {**_TEXT, "description": "false leaves the alias `live` where it is; default true."},
    }
    return _form(properties, required=["adapter_config", "adapter_model"])


def router_request() -> dict[str, Any]:
    """The multipart form of `POST /routers/learned`."""
    properties = {
        "router": {**_FILE, "description": "router.safetensors; may be sent under that name too."},
        "manifest": {**_TEXT, "description": "JSON: the manifest.json beside it; file or text."},
    }
    return _form(properties, required=["router", "manifest"])


def _form(properties: dict[str, Any], *, required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def install_openapi(app: FastAPI) -> None:
    """Puts the schemas of bodies that dependencies read into the document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, definitions = models_json_schema([(model, "validation") for model in _REQUEST_MODELS], ref_template=_REF)
            schema["components"]["schemas"].update(definitions["$defs"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _error(status: int) -> dict[str, Any]:
    code, description = _ERRORS[status]
    return {
        "model": ErrorResponse,
        "description": description,
        "content": {"application/json": {"example": example_error(code, description)}},
    }
