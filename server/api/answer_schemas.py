"""What clients get, field by field. Knows no routes and no engine."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from expert_store import Gates, Indicators, Kind, Training
from server.routing.base import Reason, RouterName, ScoringRouter
from server.service import FinishReason


class ResponseModel(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


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
