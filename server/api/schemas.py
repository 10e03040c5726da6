"""What clients send and get, field by field, with the ranges values must keep. Knows no routes and no engine.

Requests are strict: a number in quotes, an unknown field or a value that is not finite is refused.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from expert_store import Gates, Indicators, Kind, Training
from server.model.sampling import Sampling
from server.routing.base import Reason, RouterName, ScoringRouter
from server.service import Fallback, FinishReason
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


class ResponseModel(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


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


class UsageModel(ResponseModel):
    prompt_tokens: int
    completion_tokens: int
    computed_tokens: int = Field(description="Tokens run through the model: prompt, experts asked, answer.")


class ConsideredModel(ResponseModel):
    expert: str
    version: int
    score: float | None
    accepted: bool
    problem: str | None = Field(description="What kept it from being asked; null: nothing.")


class ShortlistModel(ResponseModel):
    """Whom the chain had to ask. `proposed`, `unprofiled`, `unfamiliar` and `left_out` together are the whole chain."""

    size: int = Field(description="How many experts were wanted; 0: all.")
    proposed: int = Field(description="With a profile, and not left out.")
    unprofiled: int = Field(description="Without a profile, and therefore always there to be asked.")
    unfamiliar: int = Field(description="Not there to be asked: their guards say that the prompt is not of their kind.")
    left_out: int = Field(description="Not there to be asked: others' profiles are nearer.")
    ms: float


class ShareModel(ResponseModel):
    expert: str
    version: int
    digest: str
    weight: float = Field(description="Of a mixture by layers, the mean over them.")


class ShadowModel(ResponseModel):
    """What a router that was only to be scored would have decided; `problem` where it said nothing."""

    router: ScoringRouter
    ms: float
    expert: str | None
    version: int | None
    score: float | None
    fallback: bool | None
    experts: list[ShareModel]
    agreed: bool | None = Field(description="Whether its leading expert is the one that answers.")
    problem: str | None


class RoutingModel(ResponseModel):
    """Who answers, and why."""

    router: RouterName
    expert: str | None = Field(description="null: the base model, a mixture (see `experts`), or nobody.")
    version: int | None
    digest: str | None
    score: float | None = Field(description="The expert's own probability that the query is its task.")
    fallback: bool = Field(
        description="True where every expert that was asked rejected the query: `expert` is then the pool's fallback "
        "expert, or null."
    )
    reason: Reason
    considered: list[ConsideredModel]
    catalog_generation: int
    shortlist: ShortlistModel | None = Field(description="null: the whole chain was there to be asked.")
    experts: list[ShareModel] = Field(description="Who answers, with weights; none: the base model, or nobody.")
    shadow: list[ShadowModel]


class TimingsModel(ResponseModel):
    """Milliseconds."""

    queue_ms: float
    routing_ms: float
    first_token_ms: float | None = Field(description="From arrival; null where nothing was generated.")
    total_ms: float


class RouteResponse(ResponseModel):
    """What a dry run says."""

    id: str
    usage: UsageModel
    routing: RoutingModel
    timings: TimingsModel


class DoneEvent(ResponseModel):
    """The `done` event of a stream: everything but the text."""

    id: str
    finish_reason: FinishReason
    usage: UsageModel
    routing: RoutingModel
    timings: TimingsModel


class GenerateResponse(ResponseModel):
    """A whole answer."""

    id: str
    text: str
    finish_reason: FinishReason
    usage: UsageModel
    routing: RoutingModel
    timings: TimingsModel


class CheckModel(ResponseModel):
    name: str
    passed: bool
    detail: str


class RegistrationResponse(ResponseModel):
    name: str
    version: int
    digest: str
    kind: Kind
    rank: int
    checks: list[CheckModel]
    catalog_generation: int


class RouterRegistrationResponse(ResponseModel):
    router: Literal["learned"] = "learned"
    version: int
    digest: str
    gates: Gates
    experts: list[str] = Field(description="Versions it weighs, in its own order.")
    checks: list[CheckModel]
    catalog_generation: int


class VersionSummary(ResponseModel):
    version: int
    digest: str
    kind: Kind
    rank: int
    self_selecting: bool = Field(description="Whether it can accept and reject queries, and so be in the chain.")
    gated: bool = Field(description="Whether a gate accepts and rejects for it.")
    guarded: bool = Field(description="Whether a guard keeps the chain from asking it about prompts unlike its rows.")
    aliases: list[str]
    created_at: datetime


class ExpertSummary(ResponseModel):
    name: str
    description: str
    live_version: int | None
    kind: Kind | None = Field(description="Of the live version.")
    gated: bool = Field(description="Whether the live version is asked through a gate.")
    num_versions: int
    chain_position: int | None = Field(description="0 is asked first; null is not asked.")


class ExpertList(ResponseModel):
    experts: list[ExpertSummary]
    catalog_generation: int


class ExpertRecord(ExpertSummary):
    samples: list[str] = Field(description="Prompts this expert is for.")
    aliases: dict[str, int]
    versions: list[VersionSummary]
    catalog_generation: int


class FileModel(ResponseModel):
    sha256: str
    size_bytes: int


class GateModel(ResponseModel):
    """The activated LoRA a plain one is asked through; indicators and threshold are its."""

    rank: int
    target_modules: list[str]
    parameters: int
    invocation_tokens: list[int]


class VersionRecord(VersionSummary):
    """One version as its manifest has it."""

    name: str
    target_modules: list[str]
    parameters: int
    invocation_tokens: list[int] | None
    base_fingerprint: str
    description: str
    samples: list[str]
    indicators: Indicators | None
    threshold: float
    gate: GateModel | None
    training: Training | None
    quality: dict[str, float]
    files: dict[str, FileModel]
    catalog_generation: int


class CatalogChange(ResponseModel):
    """What a change of the pool comes to."""

    catalog_generation: int


class AliasResponse(CatalogChange):
    name: str
    alias: str
    version: int | None = Field(description="null once the alias is gone.")


class DeletedVersion(CatalogChange):
    name: str
    version: int


class ChainMember(ResponseModel):
    expert: str
    version: int | None = Field(description="The live version; null where there is none.")
    kind: Kind | None
    gated: bool = Field(description="Whether it is asked through a gate.")
    guarded: bool = Field(description="Whether a guard keeps it from being asked about prompts unlike its rows.")
    asked: bool = Field(description="False where the live version cannot choose, or there is none.")
    threshold: float | None


class ChainResponse(CatalogChange):
    order: list[str]
    members: list[ChainMember]


class FallbackResponse(CatalogChange):
    expert: str | None = Field(description="null: the base model answers where nobody accepts.")
    version: int | None = Field(description="The live version; null where there is none, and the base model answers.")


class RouterModel(ResponseModel):
    router: ScoringRouter
    ready: bool
    version: int | None = Field(description="Of what it decides with; null where nothing is trained for it.")
    missing: list[str] = Field(description="What it lacks, or what does not fit this base and catalog.")
    run: str | None = Field(description="The command that mends it.")
    pending: int = Field(description="Experts whose centroids are being made; each takes part once its own is there.")
    problems: list[str] = Field(description="Experts whose centroid could not be made, each with the reason.")


class RouterList(CatalogChange):
    default: RouterName
    routers: list[RouterModel]


class HealthResponse(ResponseModel):
    status: Literal["ok"]


class ErrorDetail(ResponseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(ResponseModel):
    """Every error answer, in OpenAI's shape."""

    error: ErrorDetail


def example_error(code: str, message: str) -> dict[str, Any]:
    """For the documentation."""
    detail = ErrorDetail(message=message, type="invalid_request_error", param=None, code=code)
    return ErrorResponse(error=detail).model_dump()
