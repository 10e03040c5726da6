"""Builds the application: the only place where collaborators are constructed and tied together. Serves nothing itself.

The lifespan loads the base, opens the store, starts the engine and seeds a new store, in that order; only then does
/readyz say yes. On the way down the engine stops first, so that open requests end with an error instead of hanging.
"""

import asyncio
import importlib.metadata
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from expert_store import BaseSpec, Catalog, ExpertStore, StoreError
from server.admission import Activity, Admission
from server.api import chat_completions, completions, experts, generate, models, ops, routers
from server.api.body import BodyLimit
from server.api.errors import install_error_handlers
from server.api.openapi import install_openapi
from server.api.serving import Serving
from server.candidate import CandidateChecks, EffectEngine
from server.centroids import Centroids
from server.demo import seed_demo
from server.engine import Engine, EngineConfig, EngineObserver
from server.errors import ForeignStore, RelayError
from server.made_centroids import MadeCentroids
from server.metrics import Metrics
from server.model.base import Base, choose_device, load_base, public_name
from server.model.chat import ChatFormat
from server.model.decode_graphs import recorder_for
from server.model.feature import PromptFeature
from server.model.gradient import GradientWorker
from server.model.native import Kernels, load_kernels
from server.pins import Pins
from server.registry import PoolEngine, Registry, discard_in_background
from server.router_registry import RouterRegistry
from server.routing import ChainRouter, GradientRouter, LearnedRouter, Router, ScoringRouter, Shortlists, SlotRoom
from server.service import RequestEngine, Service
from server.settings import Settings, read_chat_template

log = structlog.get_logger()

DESCRIPTION = "An inference server whose LoRA experts choose their own requests."
SLOT_RANK = 8
_STEP_TOKENS = 512  # about a third of a second on two cores: what a new prompt may keep the others waiting
_STEP_TOKENS_ON_GPU = 4096


class AppEngine(RequestEngine, EffectEngine, PoolEngine, Protocol):
    """Everything the application asks of an engine."""

    @property
    def alive(self) -> bool: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


EngineFactory = Callable[[Base, ChatFormat, EngineConfig, EngineObserver], AppEngine]


def build_app(settings: Settings, *, make_engine: EngineFactory = Engine) -> FastAPI:
    """The application; nothing is loaded before its lifespan begins.

    A startup error that an operator can mend is also left in `app.state.startup_error`, for the command line to tell.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.startup_error = None
        try:
            running = await _start(settings, make_engine)
        except (RelayError, StoreError, OSError) as error:
            app.state.startup_error = error
            raise
        try:
            app.state.serving = running.serving
            yield
        finally:
            app.state.serving = None
            await asyncio.to_thread(running.engine.stop)
            await _end(running.making)
            await asyncio.to_thread(running.gradients.close)

    app = FastAPIOffline(
        title="LoRA Relay",
        version=package_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes, max_upload_bytes=settings.max_upload_bytes)
    for module in (generate, completions, chat_completions, models, experts, routers, ops):
        app.include_router(module.router)
    install_error_handlers(app)
    install_openapi(app)
    return app


def package_version() -> str:
    """Of the installed package, or a word for a plain checkout."""
    try:
        return importlib.metadata.version("lora-relay")
    except importlib.metadata.PackageNotFoundError:
        return "0+checkout"


@dataclass(frozen=True)
class _Running:
    """What has been started, and what must be stopped."""

    serving: Serving
    engine: AppEngine
    gradients: GradientWorker
    making: asyncio.Task[None]


async def _start(settings: Settings, make_engine: EngineFactory) -> _Running:
    """Everything from settings to a pool of experts, told in a few log lines."""
    base, kernels = await asyncio.to_thread(_load_base, settings)
    store = await asyncio.to_thread(_open_store, settings, base.spec)
    chat = ChatFormat(base.tokenizer, template=read_chat_template(settings), num_tokens=base.num_tokens)
    feature = PromptFeature(base, chat)
    metrics = _metrics(settings, base, store)
    gradients = GradientWorker(base, chat)
    engine = await asyncio.to_thread(make_engine, base, chat, _engine_config(settings, kernels), metrics)
    pins = Pins(discard_in_background(store, engine))
    registry = Registry(
        store=store,
        checks=CandidateChecks(
            spec=base.spec,
            chat=chat,
            feature=feature,
            engine=engine,
            num_tokens=base.num_tokens,
            max_rank=settings.max_rank,
            expert_memory_bytes=settings.expert_memory,
        ),
        centroids=Centroids(gradients, chat),
        engine=engine,
        pins=pins,
        metrics=metrics,
        base_id=public_name(settings.base),
    )
    made = MadeCentroids(settings.cache, gradients, chat)
    service = Service(
        engine=engine,
        chat=chat,
        tokenizer=base.tokenizer,
        routers=_routers(settings, store, gradients, made),
        shortlists=Shortlists(feature),
        catalog=lambda: store.catalog,
        pins=pins,
        admission=Admission(max_running=settings.max_running, max_queue=settings.max_queue),
        activity=Activity(metrics.on_activity),
        metrics=metrics,
    )
    engine.start()
    await _fill(registry, engine, base.spec, settings)
    router_registry = RouterRegistry(store, base, room=_room(settings))
    serving = _serving(settings, service, registry, router_registry, metrics, engine)
    return _Running(serving, engine, gradients, made.start(lambda: store.catalog))


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _routers(
    settings: Settings, store: ExpertStore, gradients: GradientWorker, made: MadeCentroids
) -> dict[ScoringRouter, Router]:
    """Every router a request can name, by its name."""
    return {
        "chain": ChainRouter(window=settings.chain_window, plain_window=settings.plain_window),
        "gradient": GradientRouter(
            gradients,
            num_experts=settings.gradient_experts,
            base_weight=settings.gradient_base_weight,
            made=made,
        ),
        "learned": LearnedRouter(store, base_fingerprint=gradients.base_fingerprint, room=_room(settings)),
    }


def _room(settings: Settings) -> SlotRoom:
    return SlotRoom(num_slots=settings.expert_slots, slot_rank=SLOT_RANK)


def _load_base(settings: Settings) -> tuple[Base, Kernels | None]:
    """And the kernels to compute it with, which have a say in its number format; None where there are none to use."""
    log.info("loading_base", base=settings.base)
    used = settings.kernels == "auto" and settings.dtype != "fp32" and choose_device(settings.device).type == "cpu"
    kernels = load_kernels(settings.cache) if used else None
    base = load_base(settings.base, dtype=settings.dtype, device=settings.device, cache=settings.cache, kernels=kernels)
    log.info("base_loaded", dtype=base.format, device=str(base.device), fingerprint=base.spec.fingerprint)
    return base, kernels


def _open_store(settings: Settings, spec: BaseSpec) -> ExpertStore:
    log.info("opening_store", store=str(settings.store))
    store = ExpertStore.open(settings.store)
    check_store_fits(store.catalog, spec)
    return store


def check_store_fits(catalog: Catalog, spec: BaseSpec) -> None:
    """Raises ForeignStore: an expert on another base would answer nonsense without any error."""
    for expert in catalog.experts.values():
        for version in expert.versions.values():
            trained_on = version.manifest.base_fingerprint
            if trained_on != spec.fingerprint:
                raise ForeignStore(version.ref, trained_on=trained_on, runs=spec.fingerprint)


def _engine_config(settings: Settings, kernels: Kernels | None) -> EngineConfig:
    device = choose_device(settings.device)
    return EngineConfig(
        kv_memory_bytes=settings.kv_memory,
        step_tokens=settings.step_tokens or (_STEP_TOKENS_ON_GPU if device.type == "cuda" else _STEP_TOKENS),
        recorder=None if settings.no_decode_graphs else recorder_for(device),
        num_slots=settings.expert_slots,
        expert_memory_bytes=settings.expert_memory,
        slot_rank=SLOT_RANK,
        max_sessions=settings.max_running,
        threads=settings.threads or None,
        prefix_cache=not settings.no_prefix_cache,
        kernels=kernels,
    )


def _metrics(settings: Settings, base: Base, store: ExpertStore) -> Metrics:
    metrics = Metrics(catalog=lambda: store.catalog, max_experts=settings.expert_slots)
    metrics.build.labels(package_version(), base.source, base.spec.fingerprint, base.format).set(1)
    return metrics


async def _fill(registry: Registry, engine: AppEngine, spec: BaseSpec, settings: Settings) -> None:
    """A new store gets its demo experts; where that fails, the engine is stopped."""
    try:
        if not settings.no_demo:
            await seed_demo(registry, spec)
    except BaseException:
        await asyncio.to_thread(engine.stop)
        raise
    catalog = registry.catalog
    for expert in registry.never_woken():
        way_out = "start with the chat template it was registered under, or take it out of the chain"
        log.warning("expert_never_woken", expert=expert.ref, next=way_out)
    log.info("pool", experts=len(catalog.experts), chain=list(catalog.chain), generation=catalog.generation)


def _serving(
    settings: Settings,
    service: Service,
    registry: Registry,
    router_registry: RouterRegistry,
    metrics: Metrics,
    engine: AppEngine,
) -> Serving:
    return Serving(
        service=service,
        registry=registry,
        router_registry=router_registry,
        metrics=metrics,
        engine_alive=lambda: engine.alive,
        default_router=settings.router,
        default_shortlist=settings.shortlist,
        default_guard=not settings.no_guard,
        base_id=public_name(settings.base),
        started_at=datetime.now(UTC),
        max_new_tokens=settings.max_new_tokens,
        max_upload_bytes=settings.max_upload_bytes,
    )
