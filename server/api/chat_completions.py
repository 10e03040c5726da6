"""`POST /v1/chat/completions`: OpenAI's conversations, answered as theirs. Knows no engine and no store."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from server.api.body import read_json
from server.api.openai import Head, openai_usage, respond, routing
from server.api.openai_schemas import (
    ChatAnswer,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    CompletionUsage,
)
from server.api.openapi import errors, json_request
from server.api.serving import Ready
from server.metrics import Endpoint
from server.service import Answer, FinishReason

router = APIRouter(prefix="/v1", tags=["openai"])

_STREAM_EXAMPLE = """data: {"id": "chatcmpl-...", "choices": [{"delta": {"role": "assistant", ...}, ...}], ...}

data: {"id": "chatcmpl-...", "choices": [{"delta": {"content": "2024"}, "finish_reason": null, ...}], ...}

data: {"id": "chatcmpl-...", "choices": [{"delta": {}, "finish_reason": "stop", ...}], ...}

data: [DONE]
"""


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={
        200: {"content": {"text/event-stream": {"example": _STREAM_EXAMPLE}}},
        **errors(404, 409, 422, 429, 503),
    },
    openapi_extra=json_request(ChatCompletionRequest),
)
async def complete_chat(
    request: Request,
    serving: Ready,
    body: Annotated[ChatCompletionRequest, Depends(read_json(ChatCompletionRequest))],
) -> Response:
    """Answers a conversation, at once or as server-sent events, the way OpenAI's API does."""
    return await respond(request, serving, body, _ChatStyle(), body.conversation, default_tokens=serving.max_new_tokens)


class _ChatStyle:
    """Chunks hold what is new; the first one says that it is the assistant who speaks."""

    endpoint: Endpoint = "chat_completions"
    prompt_field = "messages"

    def whole(self, head: Head, answer: Answer) -> ChatCompletion:
        choice = ChatChoice(message=ChatAnswer(content=answer.text), finish_reason=answer.finish_reason)
        return ChatCompletion(
            **asdict(head), choices=[choice], usage=openai_usage(answer.usage), routing=routing(answer.decision)
        )

    def first(self, head: Head) -> ChatCompletionChunk:
        return ChatCompletionChunk(**asdict(head), choices=[_new(ChatDelta(role="assistant", content=""))])

    def piece(self, head: Head, text: str, usage: CompletionUsage | None) -> ChatCompletionChunk:
        return ChatCompletionChunk(**asdict(head), choices=[_new(ChatDelta(content=text))], usage=usage)

    def last(self, head: Head, answer: Answer) -> ChatCompletionChunk:
        choice = _new(ChatDelta(), answer.finish_reason)
        return ChatCompletionChunk(**asdict(head), choices=[choice], routing=routing(answer.decision))

    def usage(self, head: Head, answer: Answer) -> ChatCompletionChunk:
        return ChatCompletionChunk(**asdict(head), choices=[], usage=openai_usage(answer.usage))


def _new(delta: ChatDelta, reason: FinishReason | None = None) -> ChatChunkChoice:
    return ChatChunkChoice(delta=delta, finish_reason=reason)
