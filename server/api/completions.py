"""`POST /v1/completions`: OpenAI's raw completions, answered as theirs. Knows no engine and no store."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from server.api.body import read_json
from server.api.openai import Head, openai_usage, respond, routing
from server.api.openai_schemas import Completion, CompletionChoice, CompletionRequest, CompletionUsage
from server.api.openapi import errors, json_request
from server.api.serving import Ready
from server.metrics import Endpoint
from server.service import Answer, RawPrompt

router = APIRouter(prefix="/v1", tags=["openai"])

_DEFAULT_TOKENS = 16  # OpenAI's

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
    prompt = RawPrompt(body.prompt if isinstance(body.prompt, str) else tuple(body.prompt))
    return await respond(request, serving, body, _TextStyle(), prompt, default_tokens=_DEFAULT_TOKENS)


class _TextStyle:
    """Whole answers and chunks alike are `text_completion` objects."""

    endpoint: Endpoint = "completions"
    prompt_field = "prompt"

    def whole(self, head: Head, answer: Answer) -> Completion:
        choice = CompletionChoice(text=answer.text, finish_reason=answer.finish_reason)
        return Completion(
            **asdict(head), choices=[choice], usage=openai_usage(answer.usage), routing=routing(answer.decision)
        )

    def first(self, head: Head) -> None:
        """Text comes at once."""

    def piece(self, head: Head, text: str, usage: CompletionUsage | None) -> Completion:
        return Completion(**asdict(head), choices=[CompletionChoice(text=text, finish_reason=None)], usage=usage)

    def last(self, head: Head, answer: Answer) -> Completion:
        choice = CompletionChoice(text="", finish_reason=answer.finish_reason)
        return Completion(**asdict(head), choices=[choice], routing=routing(answer.decision))

    def usage(self, head: Head, answer: Answer) -> Completion:
        return Completion(**asdict(head), choices=[], usage=openai_usage(answer.usage))
