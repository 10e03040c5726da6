"""Makes centroids of their samples for experts that came without a fitting one, one sample after the other, and keeps
them. Knows no HTTP and no engine.

A published version never changes, so these lie beside the store, in the cache: what is lost is made again. Each is kept
under everything it depends on, so that another base adapter or chat template asks for others.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from expert_store import Catalog, Centroid, ExpertVersion, InvalidAdapter, StoreError, read_centroid
from server.background import in_background
from server.centroids import make_centroid, sample_prompts
from server.errors import InvalidRequest, RelayError
from server.model.chat import ChatFormat, Prompt
from server.routing.gradient import Census, GradientSource, take_census

log = structlog.get_logger()
_LOOK_SECONDS = 0.5  # how soon a change of the catalog is noticed
_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 600.0
_FOLDER = "centroids"
_HALF_WRITTEN = ".new"
_LEFT_BEHIND_SECONDS = 60.0  # nobody, in no process that shares the cache, takes so long to write one


@dataclass(frozen=True)
class _Want:
    """One expert's, by one base adapter."""

    expert: ExpertVersion
    census: Census

    @property
    def key(self) -> str:
        """Names it by everything that can change while the server runs."""
        origin = self.census.origin
        parts = (self.expert.digest, *(str(part) for part in vars(origin).values()), str(self.census.width))
        return _digest(parts)

    def file_name(self, opening: Sequence[int], prompts: Sequence[Prompt]) -> str:
        """Names it by everything it depends on: also by what the chat template made of the samples."""
        rendered = (f"{prompt.body_length} {prompt.tokens}" for prompt in prompts)
        return f"{_digest((self.key, str(tuple(opening)), *rendered))}.safetensors"


@dataclass(frozen=True)
class _Failed:
    """One that could not be made so far; `again_at` (of `time.monotonic`) None: it never can."""

    reason: str
    num_failures: int
    again_at: float | None


class MadeCentroids:
    """What has been made so far. Lives on the event loop's thread; gradients and disk work run in threads.

    What can never be made, since a sample has no gradient, is given up. Whatever else goes wrong may pass, and is tried
    again after a pause that grows. Both are logged, and said by `problems`.
    """

    def __init__(self, folder: Path, gradients: GradientSource, chat: ChatFormat) -> None:
        self._folder = folder / _FOLDER
        self._gradients = gradients
        self._chat = chat
        self._known: dict[str, Centroid | _Failed] = {}  # by key; of the newest catalog's experts
        self._revision = 0

    @property
    def revision(self) -> int:
        """Grows with every one that is made or fails."""
        return self._revision

    def get(self, expert: ExpertVersion, census: Census) -> Centroid | None:
        """The one made of this expert's samples, if there is one by now."""
        known = self._known.get(_Want(expert, census).key)
        return known if isinstance(known, Centroid) else None

    def num_pending(self, census: Census) -> int:
        """How many are still to be made; those given up are not."""
        return len(self._wanted(census))

    def problems(self, census: Census) -> tuple[str, ...]:
        """What kept those from being made that have failed, given up or not."""
        known = [(expert.ref, self._known.get(_Want(expert, census).key)) for expert in census.wanting]
        return tuple(_told(ref, failed) for ref, failed in known if isinstance(failed, _Failed))

    def start(self, catalog: Callable[[], Catalog]) -> asyncio.Task[None]:
        """Keeps up in a task, to be cancelled; should it die by itself, that is logged."""
        task = asyncio.create_task(self.keep_up(catalog))
        task.add_done_callback(_log_death)
        return task

    async def keep_up(self, catalog: Callable[[], Catalog]) -> None:
        """Makes what the newest catalog lacks, until it is cancelled. Rests as long as each sample took, so that
        requests that need gradients, or processors, come in between."""
        await in_background(lambda: _sweep(self._folder))
        looked_at: tuple[int, int] | None = None
        wanted: list[_Want] = []
        while True:
            current = catalog()
            if (current.generation, self._revision) != looked_at:
                wanted = self._look(current)
                looked_at = (current.generation, self._revision)
            due = next(filter(self._is_due, wanted), None)
            if due is None:
                await asyncio.sleep(_LOOK_SECONDS)
            else:
                await self._make(due)

    def _look(self, catalog: Catalog) -> list[_Want]:
        """What is wanted now; what is known of others is forgotten, and at most read again."""
        source = self._gradients
        census = take_census(catalog, base_fingerprint=source.base_fingerprint, feature=source.feature)
        here = census if isinstance(census, Census) else None
        keys = set() if here is None else {_Want(expert, here).key for expert in here.wanting}
        self._known = {key: known for key, known in self._known.items() if key in keys}
        return [] if here is None else self._wanted(here)

    def _wanted(self, census: Census) -> list[_Want]:
        wants = [_Want(expert, census) for expert in census.wanting]
        return [want for want in wants if self._is_wanted(self._known.get(want.key))]

    @staticmethod
    def _is_wanted(known: Centroid | _Failed | None) -> bool:
        return known is None or (isinstance(known, _Failed) and known.again_at is not None)

    def _is_due(self, want: _Want) -> bool:
        known = self._known.get(want.key)
        return not isinstance(known, _Failed) or (known.again_at is not None and known.again_at <= time.monotonic())

    async def _make(self, want: _Want) -> None:
        try:
            self._know(want, await self._read_or_made(want))
        except InvalidRequest as error:
            self._fail(want, error.message, forever=True)
        except (RelayError, StoreError, OSError) as error:
            self._fail(want, str(error))
        except Exception as error:
            log.exception("no_centroid_bug", expert=want.expert.ref)
            self._fail(want, f"{type(error).__name__}: the server's log says why")

    def _know(self, want: _Want, known: Centroid | _Failed) -> None:
        self._known[want.key] = known
        self._revision += 1

    def _fail(self, want: _Want, reason: str, *, forever: bool = False) -> None:
        before = self._known.get(want.key)
        num_failures = 1 + (before.num_failures if isinstance(before, _Failed) else 0)
        again_at = None if forever else time.monotonic() + pause_seconds(num_failures)
        failed = _Failed(reason, num_failures, again_at)
        log.warning("no_centroid", base_adapter=want.census.base.ref, problem=_told(want.expert.ref, failed))
        self._know(want, failed)

    async def _read_or_made(self, want: _Want) -> Centroid:
        chat, samples = self._chat, want.expert.manifest.samples
        prompts = await in_background(lambda: sample_prompts(chat, samples))
        opening = await in_background(lambda: chat.opening)
        path = self._folder / want.file_name(opening, prompts)
        kept = await in_background(lambda: _read(path, want.census))
        if kept is not None:
            return kept
        started = time.perf_counter()
        centroid = await make_centroid(self._gradients, want.census, prompts, rests=True)
        seconds = round(time.perf_counter() - started, 1)
        refs = {"expert": want.expert.ref, "base_adapter": want.census.base.ref}
        log.info("centroid_made", **refs, samples=len(prompts), seconds=seconds)
        await in_background(lambda: _write(path, centroid.to_bytes()))
        return centroid


def pause_seconds(num_failures: int) -> float:
    """Before one that has failed so often, once or more, is tried again."""
    return min(_FIRST_PAUSE_SECONDS * 2.0 ** min(num_failures - 1, 30), _LONGEST_PAUSE_SECONDS)


def _told(ref: str, failed: _Failed) -> str:
    if failed.again_at is None:
        return f"{ref} gets no centroid: {failed.reason}"
    return f"the centroid of {ref} could not be made yet and is tried again: {failed.reason}"


def _log_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("centroids_ended", hint="no more are made until the server starts anew", exc_info=error)


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read(path: Path, census: Census) -> Centroid | None:
    """None where there is none that can be used."""
    try:
        centroid = read_centroid(path)
    except (InvalidAdapter, OSError):
        return None
    return centroid if (centroid.origin, len(centroid.vector_D)) == (census.origin, census.width) else None


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all; without it, it is made again."""
    fresh = path.with_suffix(f".{time.monotonic_ns()}{_HALF_WRITTEN}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fresh.write_bytes(data)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        log.warning("centroid_not_kept", path=str(path), error=str(error))


def _sweep(folder: Path) -> None:
    """Removes what a process that died while writing has left; what somebody may be writing just now stays."""
    try:
        for path in folder.glob(f"*{_HALF_WRITTEN}"):
            if time.time() - path.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("centroids_not_swept", folder=str(folder), error=str(error))
