"""`POST /generate` and `POST /route`: requests into queries, answers into responses. Knows no engine and no store."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from server.api.body import read_json, until_disconnected
from server.api.openapi import errors, json_request
from server.api.schemas import (
    DEFAULT_MAX_NEW_TOKENS,
    GenerateRequest,
    GenerateResponse,
    PromptRequest,
    RouteResponse,
)
from server.api.serving import Ready, Serving
from server.api.stream import EventStream
from server.api.views import generate_response, route_response
from server.errors import InvalidRequest
from server.model.chat import Message
from server.model.sampling import Sampling
from server.routing.base import Decision
from server.service import GenerationQuery, Query

router = APIRouter(tags=["generation"])

_STREAM_EXAMPLE = """event: routing
data: {"router": "chain", "expert": "dates", "version": 1, ...}

event: token
data: {"text": "2024-05-03"}

event: done
data: {"id": "generate-...", "finish_reason": "stop", "usage": {...}, "routing": {...}, "timings": {...}}
"""


@router.post(
    "/generate",
    response_model=GenerateResponse,
    responses={200: {"content": {"text/event-stream": {"example": _STREAM_EXAMPLE}}}, **errors(404, 422, 429, 503)},
    openapi_extra=json_request(GenerateRequest),
)
async def generate(
    request: Request,
    serving: Ready,
    body: Annotated[GenerateRequest, Depends(read_json(GenerateRequest))],
) -> Response:
    """Finds the expert and answers, at once or as server-sent events (`routing`, `token`..., `done`, or `error`)."""
    query = _generation_query(body, serving)
    if body.stream:
        return EventStream(
            lambda listener: serving.service.generate(query, listener), on_error=serving.metrics.on_error
        )
    answer = await until_disconnected(request.receive, serving.service.generate(query, Unheard()))
    return Response(generate_response(answer).model_dump_json(), media_type="application/json")


@router.post(
    "/route",
    response_model=RouteResponse,
    responses=errors(404, 422, 429, 503),
    openapi_extra=json_request(PromptRequest),
)
async def route(
    request: Request,
    serving: Ready,
    body: Annotated[PromptRequest, Depends(read_json(PromptRequest))],
) -> RouteResponse:
    """Says who would answer, and generates nothing."""
    query = Query(messages=_messages(body), expert=body.expert, router=body.router or serving.default_router)
    return route_response(await until_disconnected(request.receive, serving.service.route(query)))


class Unheard:
    """The listener of an answer that is given whole."""

    async def on_decision(self, request_id: str, decision: Decision) -> None: ...

    async def on_text(self, text: str) -> None: ...


def _generation_query(body: GenerateRequest, serving: Serving) -> GenerationQuery:
    return GenerationQuery(
        messages=_messages(body),
        expert=body.expert,
        router=body.router or serving.default_router,
        sampling=Sampling(
            max_new_tokens=_max_new_tokens(body, serving.max_new_tokens),
            min_new_tokens=body.min_new_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            presence_penalty=body.presence_penalty,
            seed=body.seed,
            ignore_eos=body.ignore_eos,
        ),
        stops=tuple(body.stop),
        refuse_fallback=body.fallback == "refuse",
    )


def _max_new_tokens(body: GenerateRequest, cap: int) -> int:
    wanted = min(max(DEFAULT_MAX_NEW_TOKENS, body.min_new_tokens), cap)
    if body.max_new_tokens is not None:
        wanted = body.max_new_tokens
    for name, value in (("max_new_tokens", wanted), ("min_new_tokens", body.min_new_tokens)):
        if value > cap:
            raise InvalidRequest(
                f"{name} is {value}, this server generates at most {cap}: "
                "ask for less, or start it with a larger --max-new-tokens",
                param=name,
            )
    return wanted


def _messages(body: PromptRequest) -> tuple[Message, ...]:
    if body.messages is not None:
        return tuple({"role": message.role, "content": message.content} for message in body.messages)
    assert body.prompt is not None, "the schema let a request without a prompt through. This is a bug."
    return ({"role": "user", "content": body.prompt},)
