"""`POST /generate` and `POST /route`: requests into queries, answers into responses. Knows no engine and no store."""

import json
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from server.api.answer_schemas import GenerateResponse, RouteResponse
from server.api.body import read_json, until_disconnected
from server.api.errors import ApiError
from server.api.openapi import errors, json_request
from server.api.request_schemas import DEFAULT_MAX_NEW_TOKENS, GenerateRequest, PromptRequest
from server.api.serving import Ready, Serving
from server.api.stream import EventSender, EventStream
from server.api.views import done_event, generate_response, route_response, routing_model
from server.errors import InvalidRequest
from server.model.chat import Message
from server.model.sampling import Sampling
from server.routing.base import Decision, ScoringRouter
from server.service import Answer, GenerationQuery, Query, Unheard
from server.trace import Usage

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
    responses={
        200: {"content": {"text/event-stream": {"example": _STREAM_EXAMPLE}}},
        **errors(404, 409, 422, 429, 503),
    },
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
            lambda listener: serving.service.generate(query, listener),
            RelayEvents,
            on_error=serving.metrics.on_error,
        )
    answer = await until_disconnected(request.receive, serving.service.generate(query, Unheard()))
    return Response(generate_response(answer).model_dump_json(), media_type="application/json")


@router.post(
    "/route",
    response_model=RouteResponse,
    responses=errors(404, 409, 422, 429, 503),
    openapi_extra=json_request(PromptRequest),
)
async def route(
    request: Request,
    serving: Ready,
    body: Annotated[PromptRequest, Depends(read_json(PromptRequest))],
) -> RouteResponse:
    """Says who would answer, and generates nothing."""
    query = Query(
        prompt=_messages(body),
        expert=body.expert,
        router=body.router or serving.default_router,
        shortlist=serving.shortlist(body.shortlist),
        guard=serving.guard(body.guard),
        shadow=_shadow(body, serving),
        gradient_experts=body.gradient_experts,
        gradient_base_weight=body.gradient_base_weight,
    )
    return route_response(await until_disconnected(request.receive, serving.service.route(query)))


class RelayEvents:
    """Our own events: `routing`, `token`..., then `done` or `error`."""

    def __init__(self, sender: EventSender) -> None:
        self._sender = sender

    async def on_decision(self, request_id: str, decision: Decision) -> None:  # noqa: ARG002
        await self._sender.start()
        await self._sender.send(routing_model(decision).model_dump_json(), event="routing")

    async def on_text(self, text: str, usage: Usage) -> None:  # noqa: ARG002 - told at the end
        await self._sender.send(json.dumps({"text": text}, ensure_ascii=False), event="token")

    async def on_answer(self, answer: Answer) -> None:
        await self._sender.send(done_event(answer).model_dump_json(), event="done")

    async def on_error(self, error: ApiError) -> None:
        await self._sender.send(json.dumps(error.body), event="error")


def _generation_query(body: GenerateRequest, serving: Serving) -> GenerationQuery:
    return GenerationQuery(
        prompt=_messages(body),
        expert=body.expert,
        router=body.router or serving.default_router,
        shortlist=serving.shortlist(body.shortlist),
        guard=serving.guard(body.guard),
        shadow=_shadow(body, serving),
        gradient_experts=body.gradient_experts,
        gradient_base_weight=body.gradient_base_weight,
        sampling=_sampling(body, serving),
        stops=tuple(body.stop),
        as_fits=body.max_new_tokens is None,
        fallback=body.fallback,
    )


def _shadow(body: PromptRequest, serving: Serving) -> tuple[ScoringRouter, ...]:
    """Raises InvalidRequest for the router that decides: it would only be run twice."""
    used = body.router or serving.default_router
    if body.expert is None and used in body.shadow:
        raise InvalidRequest(f"shadow names router {used}, which decides here: leave it out", param="shadow")
    return body.shadow


def _sampling(body: GenerateRequest, serving: Serving) -> Sampling:
    default = min(max(DEFAULT_MAX_NEW_TOKENS, body.min_new_tokens), serving.max_new_tokens)
    max_new_tokens = body.max_new_tokens or default
    serving.check_new_tokens("max_new_tokens", max_new_tokens)
    serving.check_new_tokens("min_new_tokens", body.min_new_tokens)
    return body.sampling(max_new_tokens=max_new_tokens, min_new_tokens=body.min_new_tokens)


def _messages(body: PromptRequest) -> tuple[Message, ...]:
    if body.messages is not None:
        return tuple({"role": message.role, "content": message.content} for message in body.messages)
    assert body.prompt is not None, "the schema let a request without a prompt through. This is a bug."
    return ({"role": "user", "content": body.prompt},)
