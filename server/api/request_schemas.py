"""What clients send, field by field, with the ranges values must keep. Knows no routes and no engine.

Requests are strict: a number in quotes, an unknown field or a value that is not finite is refused.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from server.model.sampling import Sampling
from server.routing.base import RouterName, ScoringRouter
from server.service import Fallback
from server.settings import MAX_BASE_WEIGHT, MAX_GRADIENT_EXPERTS, MAX_SHORTLIST

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_MESSAGES = 1024
MAX_CHAIN = 4096
MAX_TOP_K = 1_000_000
MAX_SEED = 2**63 - 1
HARD_MAX_NEW_TOKENS = 1_000_000
DEFAULT_MAX_NEW_TOKENS = 128


def _listed(stop: Any) -> Any:
    """One stop string may stand alone, and null means none."""
    if stop is None:
        return []
    return [stop] if isinstance(stop, str) else stop


# Longer than any valid name, short enough to be repeated in an error message.
Ref = Annotated[str, Field(max_length=160)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[
    list[Stop],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_listed, json_schema_input_type=Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None),
]
Generation = Annotated[int, Field(ge=0, le=2**63 - 1)]


class RequestModel(BaseModel):
    """Base of every request body.

    Its tuples fail fast: telling what is wrong with each of half a million items would hold up everybody for seconds.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class ChatMessage(RequestModel):
    role: Literal["system", "user", "assistant"]
    content: str


class PromptRequest(RequestModel):
    """Who should answer what: the body of `POST /route`, and the head of `POST /generate`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "Write the date as ISO 8601: the third of May 2024"}]}
    )

    prompt: str | None = Field(None, min_length=1, description="One user message; give this or `messages`.")
    messages: tuple[ChatMessage, ...] | None = Field(
        None,
        min_length=1,
        max_length=MAX_MESSAGES,
        fail_fast=True,
        description="A conversation; give this or `prompt`.",
    )
    router: RouterName | None = Field(
        None,
        description="`chain` asks the experts, `gradient` and `learned` weigh them, `none` goes to the base model. "
        "Default: the server's setting.",
    )
    expert: Ref | None = Field(
        None, description="Name, name@version or name@alias of the expert to answer; no router is asked then."
    )
    shortlist: int | None = Field(
        None,
        ge=0,
        le=MAX_SHORTLIST,
        description="Let the chain ask only so many experts, chosen by the prompt's words; 0 asks all. Default: the "
        "server's setting.",
    )
    guard: bool | None = Field(
        None,
        description="Let the chain ask no expert whose guard says that the prompt is unlike all that it was trained "
        "on. Guards judge one user message, not conversations. Default: the server's setting.",
    )
    gradient_experts: int | None = Field(
        None,
        ge=1,
        le=MAX_GRADIENT_EXPERTS,
        description="Let the gradient router mix so many experts, the nearest ones. Default: the server's setting.",
    )
    gradient_base_weight: float | None = Field(
        None,
        ge=0,
        le=MAX_BASE_WEIGHT,
        description="What the base adapter weighs in the gradient router's mixture, where the experts weigh 1 "
        "together; 0 leaves it out. Default: the server's setting.",
    )
    shadow: tuple[ScoringRouter, ...] = Field(
        (),
        max_length=3,
        fail_fast=True,
        description="Routers to score for the same prompt, without acting on what they say.",
    )

    @model_validator(mode="after")
    def _shadows_are_distinct(self) -> Self:
        if len(set(self.shadow)) < len(self.shadow):
            raise PydanticCustomError("shadow_twice", "shadow names a router twice", {"param": "shadow"})
        return self

    @model_validator(mode="after")
    def _one_of_prompt_and_messages(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            given = "neither" if self.prompt is None else "both"
            raise PydanticCustomError(
                "prompt_or_messages", f"give either prompt or messages, not {given}", {"param": "prompt"}
            )
        return self


class SamplingFields(RequestModel):
    """How tokens are chosen and delivered, as every route that generates takes it."""

    temperature: float = Field(0.0, ge=0, le=2, description="0 always takes the most likely token.")
    top_p: float = Field(1.0, gt=0, le=1, description="Keep the most likely tokens up to this probability mass.")
    top_k: int = Field(0, ge=0, le=MAX_TOP_K, description="Keep so many of the most likely tokens; 0 keeps all.")
    min_p: float = Field(0.0, ge=0, le=1, description="Drop tokens less likely than this share of the likeliest.")
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="Above 1 makes tokens already seen less likely.")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="Taken off tokens already generated.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="The same seed gives the same answer.")
    stop: Stops = Field([], description="Text that ends the answer and is not part of it; up to 16 strings.")
    ignore_eos: bool = Field(False, description="Go on after the model's end-of-text token (for measurements).")
    stream: bool = Field(False, description="Answer with server-sent events.")

    def sampling(self, *, max_new_tokens: int, min_new_tokens: int) -> Sampling:
        return Sampling(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
        )


class GenerateRequest(PromptRequest, SamplingFields):
    """The body of `POST /generate`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "Write the date as ISO 8601: the third of May 2024", "max_new_tokens": 32},
                {
                    "messages": [{"role": "user", "content": "Hello!"}],
                    "router": "none",
                    "temperature": 0.7,
                    "top_p": 0.9,
                    "seed": 7,
                    "stream": True,
                },
            ]
        }
    )

    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=HARD_MAX_NEW_TOKENS,
        description="Most tokens to generate; default 128, capped by the server's setting.",
    )
    min_new_tokens: int = Field(0, ge=0, le=HARD_MAX_NEW_TOKENS, description="No end of text before so many tokens.")
    fallback: Fallback = Field(
        "expert",
        description="When no expert accepts: let the pool's fallback expert answer, or else the base model; the base "
        "model in any case; or answer nothing.",
    )

    @model_validator(mode="after")
    def _minimum_below_maximum(self) -> Self:
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise PydanticCustomError(
                "min_over_max",
                f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}",
                {"param": "min_new_tokens"},
            )
        return self


class AliasRequest(RequestModel):
    """The body of `PUT /experts/{name}/aliases/{alias}`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 2}]})

    version: int = Field(ge=1, le=10**9, description="The version the alias is to point at.")


class ChainRequest(RequestModel):
    """The body of `PUT /chain`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"order": ["sql", "dates"], "generation": 17}]})

    order: tuple[Ref, ...] = Field(
        max_length=MAX_CHAIN,
        fail_fast=True,
        description="Experts to ask, first to last; those left out are not asked.",
    )
    generation: Generation | None = Field(
        None, description="Change only if the catalog is still at this generation, else 409."
    )


class FallbackRequest(RequestModel):
    """The body of `PUT /fallback`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"expert": "general"}]})

    expert: Ref | None = Field(description="Name of the expert to answer where nobody accepts; null: the base model.")
