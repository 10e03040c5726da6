"""`POST /v1/completions`: OpenAI's raw completions as queries, and answers as theirs. Knows no engine and no store."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from expert_store import StoreError
from server.api.body import read_json, until_disconnected
from server.api.errors import ApiError
from server.api.models import answerer
from server.api.openai_schemas import (
    DEFAULT_MAX_TOKENS,
    Completion,
    CompletionChoice,
    CompletionRequest,
    CompletionUsage,
)
from server.api.openapi import errors, json_request
from server.api.schemas import RoutingModel
from server.api.serving import Ready, Serving
from server.api.stream import EventSender, EventStream
from server.api.views import routing_model
from server.errors import PromptTooLong, RelayError, RequestTooLarge
from server.model.sampling import Sampling
from server.routing.base import Decision
from server.service import Answer, GenerationQuery, Listener, RawPrompt, Unheard

router = APIRouter(prefix="/v1", tags=["openai"])

# What the service's fields are called here.
_FIELDS = {"expert": "model", "max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}

_STREAM_EXAMPLE = """data: {"id": "cmpl-...", "choices": [{"index": 0, "text": "2024", "finish_reason": null}], ...}

data: {"id": "cmpl-...", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}, ...}

data: [DONE]
"""


@router.post(
    "/completions",
    response_model=Completion,
    responses={
        200: {"content": {"text/event-stream": {"example": _STREAM_EXAMPLE}}},
        **errors(404, 409, 422, 429, 503),
    },
    openapi_extra=json_request(CompletionRequest),
)
async def complete(
    request: Request,
    serving: Ready,
    body: Annotated[CompletionRequest, Depends(read_json(CompletionRequest))],
) -> Response:
    """Continues raw text, at once or as server-sent events, the way OpenAI's API does."""
    generate = partial(_generate, serving, _query(body, serving))
    if body.stream:
        return EventStream(generate, partial(CompletionChunks, body), on_error=serving.metrics.on_error)
    answer = await until_disconnected(request.receive, generate(Unheard()))
    return Response(_completion(answer, body.model).model_dump_json(), media_type="application/json")


class CompletionChunks:
    """OpenAI's events: chunks of text, one with the finish reason, one with the usage if wanted, then `[DONE]`."""

    def __init__(self, body: CompletionRequest, sender: EventSender) -> None:
        self._model = body.model
        self._include_usage = body.stream_options is not None and body.stream_options.include_usage
        self._sender = sender
        self._created = int(time.time())
        self._request_id: str | None = None

    async def on_decision(self, request_id: str, decision: Decision) -> None:  # noqa: ARG002
        self._request_id = request_id
        await self._sender.start()

    async def on_text(self, text: str) -> None:
        await self._send([CompletionChoice(text=text, finish_reason=None)])

    async def on_answer(self, answer: Answer) -> None:
        last = CompletionChoice(text="", finish_reason=answer.finish_reason)
        await self._send([last], routing=_routing(answer.decision))
        if self._include_usage:
            await self._send([], usage=_usage(answer))
        await self._sender.send("[DONE]")

    async def on_error(self, error: ApiError) -> None:
        await self._sender.send(json.dumps(error.body))
        await self._sender.send("[DONE]")

    async def _send(
        self,
        choices: list[CompletionChoice],
        *,
        usage: CompletionUsage | None = None,
        routing: RoutingModel | None = None,
    ) -> None:
        assert self._request_id is not None, "text came before the decision. This is a bug."
        chunk = Completion(
            id=self._request_id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            routing=routing,
        )
        await self._sender.send(chunk.model_dump_json())


async def _generate(serving: Serving, query: GenerationQuery, listener: Listener) -> Answer:
    with _fields_of_this_route():
        return await serving.service.generate(query, listener, endpoint="completions")


@contextmanager
def _fields_of_this_route() -> Iterator[None]:
    """Lets errors name the field that was sent."""
    try:
        yield
    except RelayError as error:
        error.param = _FIELDS.get(error.param or "", error.param)
        if isinstance(error, PromptTooLong | RequestTooLarge):
            error.message = error.message.replace("max_new_tokens", _FIELDS["max_new_tokens"])
        raise
    except StoreError as error:
        error.field = _FIELDS.get(error.field or "", error.field)
        raise


def _query(body: CompletionRequest, serving: Serving) -> GenerationQuery:
    who = answerer(body.model, base_id=serving.base_id)
    return GenerationQuery(
        prompt=RawPrompt(body.prompt if isinstance(body.prompt, str) else tuple(body.prompt)),
        expert=who.expert,
        router=who.router,
        shortlist=serving.default_shortlist,
        guard=serving.default_guard,
        sampling=_sampling(body, serving),
        stops=tuple(body.stop),
    )


def _sampling(body: CompletionRequest, serving: Serving) -> Sampling:
    default = min(max(DEFAULT_MAX_TOKENS, body.min_tokens), serving.max_new_tokens)
    max_tokens = body.max_tokens or default
    serving.check_new_tokens("max_tokens", max_tokens)
    serving.check_new_tokens("min_tokens", body.min_tokens)
    return body.sampling(max_new_tokens=max_tokens, min_new_tokens=body.min_tokens)


def _completion(answer: Answer, model: str) -> Completion:
    return Completion(
        id=answer.request_id,
        created=int(time.time()),
        model=model,
        choices=[CompletionChoice(text=answer.text, finish_reason=answer.finish_reason)],
        usage=_usage(answer),
        routing=_routing(answer.decision),
    )


def _usage(answer: Answer) -> CompletionUsage:
    usage = answer.usage
    return CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def _routing(decision: Decision) -> RoutingModel | None:
    return routing_model(decision) if decision.reason in ("accepted", "no_acceptance") else None
