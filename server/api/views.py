"""Decisions, answers, experts and catalogs as response models. Computes nothing and changes nothing."""

from collections.abc import Iterable, Sequence

from expert_store import Catalog, Expert, ExpertVersion, Gate
from server.api.answer_schemas import (
    ChainMember,
    ChainResponse,
    CheckModel,
    ConsideredModel,
    DoneEvent,
    ExpertList,
    ExpertRecord,
    ExpertSummary,
    FallbackResponse,
    FileModel,
    GateModel,
    GenerateResponse,
    RegistrationResponse,
    RouteResponse,
    RouterList,
    RouterModel,
    RouterRegistrationResponse,
    RoutingModel,
    ShadowModel,
    ShareModel,
    ShortlistModel,
    TimingsModel,
    UsageModel,
    VersionRecord,
    VersionSummary,
)
from server.candidate import Check
from server.engine.answerer import Weighted
from server.registry import Registration
from server.router_registry import RouterRegistration
from server.routing.base import Decision, RouterName, RouterStatus, Shadow, Shortlist
from server.service import Answer, RouteAnswer
from server.trace import Timings, Usage


def routing_model(decision: Decision) -> RoutingModel:
    expert = decision.expert
    return RoutingModel(
        router=decision.router,
        expert=expert.name if expert else None,
        version=expert.version if expert else None,
        digest=expert.digest if expert else None,
        score=decision.score,
        fallback=decision.fallback,
        reason=decision.reason,
        considered=[
            ConsideredModel(expert=c.expert, version=c.version, score=c.score, accepted=c.accepted, problem=c.problem)
            for c in decision.considered
        ],
        catalog_generation=decision.catalog_generation,
        shortlist=None if decision.shortlist is None else _shortlist(decision.shortlist),
        experts=_shares(decision.shares),
        shadow=[_shadow(shadow, decision) for shadow in decision.shadows],
    )


def _shares(shares: Sequence[Weighted]) -> list[ShareModel]:
    return [
        ShareModel(expert=s.expert.name, version=s.expert.version, digest=s.expert.digest, weight=s.weight)
        for s in shares
    ]


def _shadow(shadow: Shadow, used: Decision) -> ShadowModel:
    decision = shadow.decision
    expert = decision.expert if decision else None
    return ShadowModel(
        router=shadow.router,
        ms=round(shadow.seconds * 1000, 3),
        expert=expert.name if expert else None,
        version=expert.version if expert else None,
        score=decision.score if decision else None,
        fallback=decision.fallback if decision else None,
        experts=_shares(decision.shares) if decision else [],
        agreed=decision.leader == used.leader if decision else None,
        problem=shadow.problem,
    )


def router_list(statuses: Sequence[RouterStatus], default: RouterName, catalog_generation: int) -> RouterList:
    routers = [
        RouterModel(
            router=s.router,
            ready=s.ready,
            version=s.version,
            missing=list(s.missing),
            run=s.way_out,
            pending=s.pending,
            problems=list(s.problems),
        )
        for s in statuses
    ]
    return RouterList(default=default, routers=routers, catalog_generation=catalog_generation)


def route_response(answer: RouteAnswer) -> RouteResponse:
    return RouteResponse(
        id=answer.request_id,
        usage=_usage(answer.usage),
        routing=routing_model(answer.decision),
        timings=_timings(answer.timings),
    )


def done_event(answer: Answer) -> DoneEvent:
    return DoneEvent(finish_reason=answer.finish_reason, **dict(route_response(answer)))


def generate_response(answer: Answer) -> GenerateResponse:
    return GenerateResponse(text=answer.text, **dict(done_event(answer)))


def registration_response(registration: Registration) -> RegistrationResponse:
    version = registration.version
    return RegistrationResponse(
        name=version.name,
        version=version.version,
        digest=version.digest,
        kind=version.kind,
        rank=version.rank,
        checks=_checks(registration.checks),
        catalog_generation=registration.catalog_generation,
    )


def router_registration_response(registration: RouterRegistration) -> RouterRegistrationResponse:
    router = registration.router
    return RouterRegistrationResponse(
        version=router.version,
        digest=router.digest,
        gates=router.manifest.gates,
        experts=[f"{expert.name}@{expert.version}" for expert in router.manifest.experts],
        checks=_checks(registration.checks),
        catalog_generation=registration.catalog_generation,
    )


def _checks(checks: Iterable[Check]) -> list[CheckModel]:
    return [CheckModel(name=c.name, passed=c.passed, detail=c.detail) for c in checks]


def expert_list(catalog: Catalog) -> ExpertList:
    experts = [_summary(expert, catalog) for _, expert in sorted(catalog.experts.items())]
    return ExpertList(experts=experts, catalog_generation=catalog.generation)


def expert_record(expert: Expert, catalog: Catalog) -> ExpertRecord:
    """Description and samples are those of the live version, or of the newest where none is live."""
    newest = expert.versions[max(expert.versions)]
    return ExpertRecord(
        **dict(_summary(expert, catalog)),
        samples=list((expert.live or newest).manifest.samples),
        aliases=dict(sorted(expert.aliases.items())),
        versions=[_version_summary(expert, version) for _, version in sorted(expert.versions.items())],
        catalog_generation=catalog.generation,
    )


def version_record(expert: Expert, version: ExpertVersion, catalog: Catalog) -> VersionRecord:
    manifest = version.manifest
    return VersionRecord(
        **dict(_version_summary(expert, version)),
        name=version.name,
        target_modules=list(manifest.target_modules),
        parameters=manifest.parameters,
        invocation_tokens=None if manifest.invocation_tokens is None else list(manifest.invocation_tokens),
        base_fingerprint=manifest.base_fingerprint,
        description=manifest.description,
        samples=list(manifest.samples),
        indicators=manifest.indicators,
        threshold=manifest.threshold,
        gate=None if manifest.gate is None else _gate_model(manifest.gate),
        training=manifest.training,
        quality=dict(manifest.quality),
        files={
            name: FileModel(sha256=file.sha256, size_bytes=file.size_bytes) for name, file in manifest.files.items()
        },
        catalog_generation=catalog.generation,
    )


def chain_response(catalog: Catalog) -> ChainResponse:
    asked = {version.name for version in catalog.chain_experts}
    members = [_chain_member(catalog.experts[name], asked=name in asked) for name in catalog.chain]
    return ChainResponse(order=list(catalog.chain), members=members, catalog_generation=catalog.generation)


def fallback_response(catalog: Catalog) -> FallbackResponse:
    live = catalog.fallback_expert
    return FallbackResponse(
        expert=catalog.fallback, version=live.version if live else None, catalog_generation=catalog.generation
    )


def _chain_member(expert: Expert, *, asked: bool) -> ChainMember:
    live = expert.live
    return ChainMember(
        expert=expert.name,
        version=live.version if live else None,
        kind=live.kind if live else None,
        gated=_is_gated(live),
        guarded=live is not None and live.guarded,
        asked=asked,
        threshold=live.manifest.threshold if live else None,
    )


def _summary(expert: Expert, catalog: Catalog) -> ExpertSummary:
    live = expert.live
    described = live or expert.versions[max(expert.versions)]
    return ExpertSummary(
        name=expert.name,
        description=described.manifest.description,
        live_version=live.version if live else None,
        kind=live.kind if live else None,
        gated=_is_gated(live),
        num_versions=len(expert.versions),
        chain_position=catalog.chain.index(expert.name) if expert.name in catalog.chain else None,
    )


def _version_summary(expert: Expert, version: ExpertVersion) -> VersionSummary:
    return VersionSummary(
        version=version.version,
        digest=version.digest,
        kind=version.kind,
        rank=version.rank,
        self_selecting=version.self_selecting,
        gated=_is_gated(version),
        guarded=version.guarded,
        aliases=sorted(alias for alias, number in expert.aliases.items() if number == version.version),
        created_at=version.manifest.created_at,
    )


def _shortlist(shortlist: Shortlist) -> ShortlistModel:
    return ShortlistModel(
        size=shortlist.size,
        proposed=shortlist.num_proposed,
        unprofiled=shortlist.num_unprofiled,
        unfamiliar=shortlist.num_unfamiliar,
        left_out=shortlist.num_left_out,
        ms=round(shortlist.seconds * 1000, 3),
    )


def _is_gated(version: ExpertVersion | None) -> bool:
    return version is not None and version.gate is not None


def _gate_model(gate: Gate) -> GateModel:
    return GateModel(
        rank=gate.rank,
        target_modules=list(gate.target_modules),
        parameters=gate.parameters,
        invocation_tokens=list(gate.invocation_tokens),
    )


def _usage(usage: Usage) -> UsageModel:
    return UsageModel(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        computed_tokens=usage.computed_tokens,
    )


def _timings(timings: Timings) -> TimingsModel:
    return TimingsModel(
        queue_ms=timings.queue_ms,
        routing_ms=timings.routing_ms,
        first_token_ms=timings.first_token_ms,
        total_ms=timings.total_ms,
    )
