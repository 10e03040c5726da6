"""What OpenAI's clients send and get, as far as it is served here. Knows no routes and no engine.

What a client asks for and this server cannot do is refused by name; null means a field's default, as it does there.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from server.api.answer_schemas import ResponseModel, RoutingModel
from server.api.request_schemas import HARD_MAX_NEW_TOKENS, MAX_MESSAGES, MAX_TOP_K, Ref, RequestModel, SamplingFields
from server.model.chat import Message
from server.service import FinishReason


def _only(value: Any) -> AfterValidator:
    """Takes a field at the one value that asks for nothing."""

    def check(given: Any) -> Any:
        if given is not None and given != value:
            text = json.dumps(value)
            raise PydanticCustomError(
                "unsupported", "this server does not do that: send {text} or nothing", {"text": text}
            )
        return given

    return AfterValidator(check)


def _one_prompt(prompt: Any) -> Any:
    """Text or tokens; either may stand alone in a list."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    if isinstance(prompt, list) and len(prompt) > 1 and all(isinstance(one, str | list) for one in prompt):
        raise PydanticCustomError(
            "several_prompts", "one prompt a request: send each as a request of its own, they share their batches"
        )
    raise PydanticCustomError(
        "no_prompt", "give one prompt, as a string or as a list of token ids, and not an empty one"
    )


RawContent = Annotated[str | list[int], BeforeValidator(_one_prompt)]


def _without_nulls(body: Any) -> Any:
    return {k: v for k, v in body.items() if v is not None} if isinstance(body, dict) else body


class StreamOptions(RequestModel):
    include_usage: bool = Field(False, description="Let a last chunk without choices say how many tokens it was.")
    continuous_usage_stats: bool = Field(
        False, description="Let every chunk of text say how many tokens it was so far."
    )
    include_obfuscation: Annotated[bool | None, _only(False)] = Field(None, description="Only false.")

    _null_is_default = model_validator(mode="before")(_without_nulls)


class OpenAIRequest(SamplingFields):
    """What raw completions and those of chats have in common."""

    model: Ref = Field(description="An id of `GET /v1/models`, or an expert as name@version or name@alias.")
    max_tokens: int | None = Field(None, ge=1, le=HARD_MAX_NEW_TOKENS, description="Most tokens to generate.")
    max_completion_tokens: int | None = Field(
        None, ge=1, le=HARD_MAX_NEW_TOKENS, description="The newer name of `max_tokens`; if both are given, the same."
    )
    min_tokens: int = Field(0, ge=0, le=HARD_MAX_NEW_TOKENS, description="No end of text before so many tokens.")
    temperature: float = Field(1.0, ge=0, le=2, description="0 always takes the most likely token.")
    top_k: Annotated[int, AfterValidator(lambda top_k: max(top_k, 0))] = Field(
        0, ge=-1, le=MAX_TOP_K, description="Keep so many of the most likely tokens; 0 and -1 keep all."
    )
    stream_options: StreamOptions | None = Field(None, description="Only together with `stream`.")
    user: str | None = Field(None, description="Accepted, and of no effect.")
    n: Annotated[int | None, _only(1)] = Field(None, description="Only 1.")
    echo: Annotated[bool | None, _only(False)] = Field(None, description="Only false.")
    frequency_penalty: Annotated[float | None, _only(0)] = Field(None, description="Only 0.")
    logit_bias: Annotated[dict[str, Any] | None, _only({})] = Field(None, description="Only empty.")
    use_beam_search: Annotated[bool | None, _only(False)] = Field(None, description="Only false.")
    length_penalty: Annotated[float | None, _only(1)] = Field(None, description="Only 1.")
    skip_special_tokens: Annotated[bool | None, _only(True)] = Field(None, description="Only true.")
    stop_token_ids: Annotated[list[Any] | None, _only([])] = Field(None, description="Only empty.")

    _null_is_default = model_validator(mode="before")(_without_nulls)

    @property
    def most(self) -> int | None:
        """How many tokens it asks for at most; None: it does not say."""
        return self.max_tokens or self.max_completion_tokens

    @property
    def most_field(self) -> str:
        """The field that says it, or would."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.max_completion_tokens not in (None, self.most):
            raise PydanticCustomError(
                "two_limits",
                f"max_tokens {self.max_tokens} is not max_completion_tokens {self.max_completion_tokens}: give one",
                {"param": "max_tokens"},
            )
        if self.most is not None and self.min_tokens > self.most:
            raise PydanticCustomError(
                "min_over_max",
                f"min_tokens {self.min_tokens} is more than {self.most_field} {self.most}",
                {"param": "min_tokens"},
            )
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "options_without_stream", "stream_options are for streams: add stream", {"param": "stream_options"}
            )
        return self


class CompletionRequest(OpenAIRequest):
    """The body of `POST /v1/completions`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "dates", "prompt": "Once upon a time", "max_tokens": 32}]}
    )

    prompt: RawContent = Field(description="Raw text or token ids; the chat template is not applied.")
    best_of: Annotated[int | None, _only(1)] = Field(None, description="Only 1.")
    logprobs: Annotated[int | None, _only(None)] = Field(None, description="Only null.")
    suffix: Annotated[str | None, _only("")] = Field(None, description="Only empty.")
    add_special_tokens: Annotated[bool | None, _only(True)] = Field(None, description="Only true.")


def _in_one_text(content: Any) -> Any:
    """Text may come in parts, which stand on lines of their own."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not (isinstance(part, dict) and part.keys() == {"type", "text"} and isinstance(part["text"], str)):
            raise PydanticCustomError(
                "no_text", 'this server reads text alone: a string, or parts {"type": "text", "text": "..."}'
            )
    return "\n".join(part["text"] for part in content)


class ChatTurn(RequestModel):
    """One message. What a client got as an answer it may send back as it is."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="`developer` is `system`.")
    content: Annotated[str, BeforeValidator(_in_one_text, json_schema_input_type=str | list[dict[str, str]])]
    name: str | None = Field(None, description="Accepted, and of no effect.")
    refusal: Annotated[str | None, _only("")] = Field(None, description="Only null.")
    tool_calls: Annotated[list[Any] | None, _only([])] = Field(None, description="Only empty.")
    annotations: Annotated[list[Any] | None, _only([])] = Field(None, description="Only empty.")

    _null_is_default = model_validator(mode="before")(_without_nulls)


class ChatCompletionRequest(OpenAIRequest):
    """The body of `POST /v1/chat/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "relay/chain", "messages": [{"role": "user", "content": "Hello!"}]}],
        }
    )

    messages: list[ChatTurn] = Field(
        min_length=1, max_length=MAX_MESSAGES, fail_fast=True, description="Rendered with the base's chat template."
    )
    logprobs: Annotated[bool | None, _only(False)] = Field(None, description="Only false.")
    top_logprobs: Annotated[int | None, _only(0)] = Field(None, description="Only 0.")
    tools: Annotated[list[Any] | None, _only([])] = Field(None, description="Only empty.")
    tool_choice: Literal["none", "auto"] | None = Field(None, description="Of no effect, as there are no tools.")
    parallel_tool_calls: bool | None = Field(None, description="Of no effect, as there are no tools.")
    response_format: Annotated[dict[str, Any] | None, _only({"type": "text"})] = Field(None, description="Only text.")
    add_generation_prompt: Annotated[bool | None, _only(True)] = Field(None, description="Only true.")
    continue_final_message: Annotated[bool | None, _only(False)] = Field(None, description="Only false.")
    add_special_tokens: Annotated[bool | None, _only(False)] = Field(None, description="Only false.")
    functions: Annotated[list[Any] | None, _only([])] = Field(None, description="Only empty.")
    function_call: Literal["none", "auto"] | None = Field(None, description="Of no effect, as there are no functions.")
    modalities: Annotated[list[Any] | None, _only(["text"])] = Field(None, description="Only text.")
    service_tier: Literal["auto", "default"] | None = Field(None, description="Of no effect.")
    metadata: dict[str, Any] | None = Field(None, description="Accepted, and of no effect.")
    store: Annotated[bool | None, _only(False)] = Field(None, description="Only false.")

    @property
    def conversation(self) -> tuple[Message, ...]:
        return tuple(
            {"role": "system" if turn.role == "developer" else turn.role, "content": turn.content}
            for turn in self.messages
        )


class CompletionChoice(ResponseModel):
    index: Literal[0] = 0
    text: str
    finish_reason: FinishReason | None
    logprobs: None = None


class CompletionUsage(ResponseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(ResponseModel):
    """A whole answer, or one chunk of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | None = Field(None, description="null in all chunks but the last.")
    routing: RoutingModel | None = Field(None, description="Not in OpenAI's API: who answered, where a router chose.")


class ChatAnswer(ResponseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(ResponseModel):
    index: Literal[0] = 0
    message: ChatAnswer
    finish_reason: FinishReason
    logprobs: None = None


class ChatCompletion(ResponseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    routing: RoutingModel | None = Field(description="Not in OpenAI's API: who answered, where a router chose.")


class ChatDelta(ResponseModel):
    """What is new; what is not set is left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer
    def _what_is_new(self) -> dict[str, str]:
        return {key: value for key, value in (("role", self.role), ("content", self.content)) if value is not None}


class ChatChunkChoice(ResponseModel):
    index: Literal[0] = 0
    delta: ChatDelta
    finish_reason: FinishReason | None
    logprobs: None = None


class ChatCompletionChunk(ResponseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: CompletionUsage | None = None
    routing: RoutingModel | None = None


class ModelCard(ResponseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["lora-relay"] = "lora-relay"
    parent: str | None = Field(description="The base under an expert; null for the base itself.")


class ModelList(ResponseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
