"""What `/v1/completions` and `/v1/chat/completions` share: models, limits, names of fields, and how streams go on.

Knows no engine and no store; each route's own shape of answers is its `Style`.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from fastapi import Request
from fastapi.responses import Response

from expert_store import StoreError, UnknownExpert
from server.api.answer_schemas import ResponseModel, RoutingModel
from server.api.body import until_disconnected
from server.api.errors import ApiError
from server.api.models import answerer
from server.api.openai_schemas import CompletionUsage, OpenAIRequest
from server.api.serving import Serving
from server.api.stream import EventSender, EventStream
from server.api.views import routing_model
from server.errors import PromptTooLong, RelayError, RequestTooLarge
from server.metrics import Endpoint
from server.model.chat import Message
from server.model.sampling import Sampling
from server.routing.base import Decision
from server.service import Answer, GenerationQuery, Listener, RawPrompt, Unheard
from server.trace import Usage


@dataclass(frozen=True)
class Head:
    """What an answer, and every chunk of it, begins with."""

    id: str
    created: int
    model: str


class Style(Protocol):
    """How one route words what it answers."""

    endpoint: Endpoint
    prompt_field: str

    def whole(self, head: Head, answer: Answer) -> ResponseModel: ...

    def first(self, head: Head) -> ResponseModel | None:
        """The chunk before any text; None: there is none."""
        ...

    def piece(self, head: Head, text: str, usage: CompletionUsage | None) -> ResponseModel: ...

    def last(self, head: Head, answer: Answer) -> ResponseModel:
        """The chunk behind all text, with the reason why it ended."""
        ...

    def usage(self, head: Head, answer: Answer) -> ResponseModel:
        """The chunk with nothing but the tokens' numbers."""
        ...


async def respond(
    request: Request,
    serving: Serving,
    body: OpenAIRequest,
    style: Style,
    prompt: tuple[Message, ...] | RawPrompt,
    *,
    default_tokens: int,
) -> Response:
    """The whole answer, or a stream of it. A request without a limit gets `default_tokens` at most, if they fit."""
    query = _query(body, serving, prompt, default_tokens)

    async def generate(listener: Listener) -> Answer:
        with _fields_of_this_route(body, style):
            return await serving.service.generate(query, listener, endpoint=style.endpoint)

    if body.stream:
        return EventStream(generate, partial(Chunks, style, body), on_error=serving.metrics.on_error)
    answer = await until_disconnected(request.receive, generate(Unheard()))
    whole = style.whole(Head(answer.request_id, int(time.time()), body.model), answer)
    return Response(whole.model_dump_json(), media_type="application/json")


class Chunks:
    """OpenAI's events: chunks of text, one with the finish reason, one with the usage if wanted, then `[DONE]`."""

    def __init__(self, style: Style, body: OpenAIRequest, sender: EventSender) -> None:
        self._style = style
        self._model = body.model
        options = body.stream_options
        self._include_usage = options is not None and options.include_usage
        self._with_every_piece = options is not None and options.continuous_usage_stats
        self._sender = sender
        self._created = int(time.time())
        self._head: Head | None = None

    async def on_decision(self, request_id: str, decision: Decision) -> None:  # noqa: ARG002
        self._head = Head(request_id, self._created, self._model)
        await self._sender.start()
        first = self._style.first(self._head)
        if first is not None:
            await self._send(first)

    async def on_text(self, text: str, usage: Usage) -> None:
        so_far = openai_usage(usage) if self._with_every_piece else None
        await self._send(self._style.piece(self._known_head, text, so_far))

    async def on_answer(self, answer: Answer) -> None:
        await self._send(self._style.last(self._known_head, answer))
        if self._include_usage:
            await self._send(self._style.usage(self._known_head, answer))
        await self._sender.send("[DONE]")

    async def on_error(self, error: ApiError) -> None:
        await self._sender.send(json.dumps(error.body))
        await self._sender.send("[DONE]")

    @property
    def _known_head(self) -> Head:
        assert self._head is not None, "text came before the decision. This is a bug."
        return self._head

    async def _send(self, chunk: ResponseModel) -> None:
        await self._sender.send(chunk.model_dump_json())


def openai_usage(tokens: Usage) -> CompletionUsage:
    """Whoever was asked beside counts in `computed_tokens` alone, which OpenAI's API does not have."""
    return CompletionUsage(
        prompt_tokens=tokens.prompt_tokens,
        completion_tokens=tokens.completion_tokens,
        total_tokens=tokens.prompt_tokens + tokens.completion_tokens,
    )


def routing(decision: Decision) -> RoutingModel | None:
    """None where the client named who was to answer."""
    return routing_model(decision) if decision.is_routed else None


@contextmanager
def _fields_of_this_route(body: OpenAIRequest, style: Style) -> Iterator[None]:
    """Lets errors name the field that was sent."""
    names = {
        "expert": "model",
        "router": "model",
        "prompt": style.prompt_field,
        "max_new_tokens": body.most_field,
        "min_new_tokens": "min_tokens",
    }
    try:
        yield
    except RelayError as error:
        error.param = names.get(error.param or "", error.param)
        if isinstance(error, PromptTooLong | RequestTooLarge):
            error.message = error.message.replace("max_new_tokens", body.most_field)
        raise
    except StoreError as error:
        error.field = names.get(error.field or "", error.field)
        if isinstance(error, UnknownExpert):
            error.message = f"there is no model {body.model!r}: GET /v1/models lists what there is"
        raise


def _query(
    body: OpenAIRequest, serving: Serving, prompt: tuple[Message, ...] | RawPrompt, default_tokens: int
) -> GenerationQuery:
    who = answerer(body.model, base_id=serving.base_id)
    return GenerationQuery(
        prompt=prompt,
        expert=who.expert,
        router=who.router,
        shortlist=serving.default_shortlist,
        guard=serving.default_guard,
        sampling=_sampling(body, serving, default_tokens),
        stops=tuple(body.stop),
        as_fits=body.most is None,
    )


def _sampling(body: OpenAIRequest, serving: Serving, default_tokens: int) -> Sampling:
    most = body.most or min(max(default_tokens, body.min_tokens), serving.max_new_tokens)
    serving.check_new_tokens(body.most_field, most)
    serving.check_new_tokens("min_tokens", body.min_tokens)
    return body.sampling(max_new_tokens=most, min_new_tokens=body.min_tokens)
