"""Changes the expert pool while requests run: registers, deletes, points aliases, orders the chain. Knows no HTTP.

A registration is checked in full (`server.candidate`) before anything is published, and a deleted version's files
outlive the requests that may read them.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog

from expert_store import (
    Catalog,
    CorruptStore,
    ExpertStore,
    ExpertVersion,
    GenerationConflict,
    InvalidManifest,
    ManifestDraft,
    Staged,
    StoreBusy,
    StoreError,
    UnknownExpert,
    check_name,
)
from server.background import begin_in_background, in_background
from server.candidate import CandidateChecks, Check, parts_of
from server.centroids import Centroids
from server.errors import RegistrationsBusy, RelayError
from server.metrics import Metrics, RegistrationOutcome
from server.pins import Pins

log = structlog.get_logger()

MAX_RUNNING_REGISTRATIONS = 4
_RETRY_AFTER_SECONDS = 5


class PoolEngine(Protocol):
    """The seam to the engine; `server.engine.Engine` in production."""

    def adopt(self, candidate: ExpertVersion, version: ExpertVersion) -> None: ...

    def forget(self, version: ExpertVersion) -> None: ...


@dataclass(frozen=True)
class Registration:
    """A published version, what was checked, and the catalog generation that first shows it."""

    version: ExpertVersion
    checks: tuple[Check, ...]
    catalog_generation: int


def _outcome(error: StoreError | RelayError) -> RegistrationOutcome:
    if isinstance(error, RegistrationsBusy | StoreBusy):
        return "busy"
    return "error" if isinstance(error, CorruptStore) else "refused"


class Registry:
    """The only writer of experts in this process. Lives on the event loop's thread; disk work runs in threads."""

    def __init__(
        self,
        *,
        store: ExpertStore,
        checks: CandidateChecks,
        centroids: Centroids,
        engine: PoolEngine,
        pins: Pins,
        metrics: Metrics,
        base_id: str,
    ) -> None:
        self._store = store
        self._checks = checks
        self._centroids = centroids
        self._engine = engine
        self._pins = pins
        self._metrics = metrics
        self._base_id = base_id
        self._num_running = 0

    @property
    def catalog(self) -> Catalog:
        return self._store.catalog

    def never_woken(self) -> list[ExpertVersion]:
        """Experts of the chain that requests, as this server renders them, do not wake up."""
        return self._checks.never_woken(self._store.catalog)

    @asynccontextmanager
    async def stage(self) -> AsyncIterator[Staged]:
        """A private folder for one registration's files, counted when the block ends. Raises RegistrationsBusy."""
        self._num_running += 1
        outcome: RegistrationOutcome = "error"
        try:
            if self._num_running > MAX_RUNNING_REGISTRATIONS:
                raise RegistrationsBusy(running=MAX_RUNNING_REGISTRATIONS, retry_after_seconds=_RETRY_AFTER_SECONDS)
            async with _staged(self._store) as staged:
                yield staged
            outcome = "registered"
        except (StoreError, RelayError) as error:
            outcome = _outcome(error)
            raise
        finally:
            self._num_running -= 1
            self._metrics.on_registration(outcome)

    async def register(
        self, staged: Staged, draft: ManifestDraft, *, name: str | None, activate: bool = True
    ) -> Registration:
        """Checks the staged adapter and publishes it; nothing has changed if this raises.

        Raises InvalidName, InvalidManifest, InvalidAdapter, UnusableIndicators, ExpertTooLarge.
        """
        wanted = draft.name if name is None else name
        if wanted is None:
            raise InvalidManifest("name", "the expert needs a name: give the field name, or one in the manifest")
        check_name(wanted)
        if wanted == self._base_id:
            raise InvalidManifest("name", f"the name {wanted} is that of the base model: choose another")
        seen = await in_background(lambda: self._checks.look_at(staged, draft, wanted))
        said = await self._centroids.provide(staged.folder, draft.samples, name=wanted, catalog=self._store.catalog)
        checks = [*seen.files, Check("centroid", True, said), *seen.selection]
        try:
            for part, prompt in zip(seen.parts, seen.prompts, strict=True):
                checks.append(await self._checks.check_effect(part, prompt))
            version = await in_background(
                lambda: self._store.publish(staged, draft, seen.info, name=wanted, activate=activate)
            )
        except BaseException:
            self._engine.forget(seen.parts[0].version)
            raise
        for part, published in zip(seen.parts, parts_of(version), strict=True):
            self._engine.adopt(part.version, published.version)
        log.info("registered", expert=version.ref, kind=version.kind, rank=version.rank, digest=version.digest)
        return Registration(version, tuple(checks), self._store.catalog.generation)

    async def delete_version(self, name: str, version: int) -> Catalog:
        """Out of the catalog at once; the files go when no request can read them any more.

        Raises UnknownExpert, UnknownVersion, VersionInUse.
        """
        doomed = self._store.catalog.resolve(f"{name}@{version}")
        try:
            catalog = await self._changed(lambda: self._store.delete_version(name, version, keep_files=True))
        finally:  # the disk may fail behind the change
            expert = self._store.catalog.experts.get(name)
            if expert is None or version not in expert.versions:
                self._pins.delete(doomed)
        log.info("deleted", expert=doomed.ref, catalog_generation=catalog.generation)
        return catalog

    async def set_alias(self, name: str, alias: str, version: int) -> Catalog:
        """Raises InvalidName, UnknownExpert, UnknownVersion."""
        catalog = await self._changed(lambda: self._store.set_alias(name, alias, version))
        log.info("alias_set", expert=name, alias=alias, version=version)
        return catalog

    async def remove_alias(self, name: str, alias: str) -> Catalog:
        """Raises UnknownExpert, UnknownAlias."""
        catalog = await self._changed(lambda: self._store.remove_alias(name, alias))
        log.info("alias_removed", expert=name, alias=alias)
        return catalog

    async def set_chain(self, order: tuple[str, ...], *, expected_generation: int | None) -> Catalog:
        """Raises UnknownExpert, InvalidChain, GenerationConflict."""
        try:
            catalog = await self._changed(lambda: self._store.set_chain(order, expected_generation))
        except UnknownExpert as error:
            error.field = "order"
            raise
        except GenerationConflict as error:
            error.field = "generation"
            raise
        log.info("chain_set", order=list(order), catalog_generation=catalog.generation)
        return catalog

    async def set_fallback(self, name: str | None) -> Catalog:
        """Raises UnknownExpert, InvalidFallback."""
        try:
            catalog = await self._changed(lambda: self._store.set_fallback(name))
        except UnknownExpert as error:
            error.field = "expert"
            raise
        log.info("fallback_set", expert=name, catalog_generation=catalog.generation)
        return catalog

    async def _changed(self, change: Callable[[], Catalog]) -> Catalog:
        """What the change makes of the catalog; whoever is gone, by whatever process, is gone from the metrics."""
        before = self._store.catalog
        catalog = await in_background(change)
        for name in before.experts.keys() - catalog.experts.keys():
            self._metrics.forget(name)
        return catalog


@asynccontextmanager
async def _staged(store: ExpertStore) -> AsyncIterator[Staged]:
    """The store's staging folder; entering and leaving wait for its lock, so both are done in threads."""
    staging = store.stage()
    staged = await in_background(staging.__enter__)
    try:
        yield staged
    finally:
        await in_background(lambda: staging.__exit__(None, None, None))


def discard_in_background(store: ExpertStore, engine: PoolEngine) -> Callable[[ExpertVersion], None]:
    """What `Pins` calls: has a deleted version's memory given up, and its files without holding up the event loop."""

    def discard(version: ExpertVersion) -> None:
        engine.forget(version)
        begin_in_background(lambda: _discard(store, version))

    return discard


def _discard(store: ExpertStore, version: ExpertVersion) -> None:
    try:
        store.discard_files(version)
    except (StoreError, OSError) as error:
        log.warning("files_left", expert=version.ref, error=str(error), next="the next start removes them")
