"""Makes centroids of their samples for experts that came without a fitting one, one sample after the other, and keeps
them. Knows no HTTP and no engine.

A published version never changes, so these lie beside the store, in the cache: what is lost is made again. Each is kept
under everything it depends on, so that another base adapter asks for others.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from expert_store import Catalog, Centroid, ExpertVersion, InvalidAdapter, StoreError, Vector, read_centroid
from server.background import in_background
from server.errors import RelayError
from server.model.chat import ChatFormat, Prompt
from server.model.gradient import mean_direction
from server.routing.gradient import Census, GradientSource, take_census

log = structlog.get_logger()
_LOOK_SECONDS = 0.5  # how soon a change of the catalog is noticed
_FOLDER = "centroids"


@dataclass(frozen=True)
class _Want:
    """One expert's, by one base adapter."""

    expert: ExpertVersion
    census: Census

    @property
    def key(self) -> str:
        """Names it by everything it depends on."""
        origin = self.census.origin
        parts = (self.expert.digest, *(str(part) for part in vars(origin).values()), str(self.census.width))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class MadeCentroids:
    """What has been made so far. Lives on the event loop's thread; gradients and disk work run in threads.

    What cannot be made is given up until the server starts anew, and that is logged.
    """

    def __init__(self, folder: Path, gradients: GradientSource, chat: ChatFormat) -> None:
        self._folder = folder / _FOLDER
        self._gradients = gradients
        self._chat = chat
        self._made: dict[str, Centroid | None] = {}  # None where it was given up

    @property
    def revision(self) -> int:
        """Grows with every one that is made or given up."""
        return len(self._made)

    def get(self, expert: ExpertVersion, census: Census) -> Centroid | None:
        """The one made of this expert's samples, if there is one by now."""
        return self._made.get(_Want(expert, census).key)

    def num_pending(self, census: Census) -> int:
        """How many are still to be made."""
        return len(self._wanted(census))

    async def keep_up(self, catalog: Callable[[], Catalog]) -> None:
        """Makes what the newest catalog lacks, until it is cancelled. Rests as long as each sample took, so that
        requests that need gradients, or processors, come in between."""
        idle_at: tuple[int, int] | None = None
        while True:
            current = catalog()
            wanted = [] if (current.generation, self.revision) == idle_at else self._wanted_on(current)
            if wanted:
                await self._make(wanted[0])
            else:
                idle_at = (current.generation, self.revision)
                await asyncio.sleep(_LOOK_SECONDS)

    def _wanted_on(self, catalog: Catalog) -> list[_Want]:
        source = self._gradients
        census = take_census(catalog, base_fingerprint=source.base_fingerprint, feature=source.feature)
        return self._wanted(census) if isinstance(census, Census) else []

    def _wanted(self, census: Census) -> list[_Want]:
        wants = [_Want(expert, census) for expert in census.wanting]
        return [want for want in wants if want.key not in self._made]

    async def _make(self, want: _Want) -> None:
        path = self._folder / f"{want.key}.safetensors"
        centroid: Centroid | None = await in_background(lambda: _read(path, want.census))
        if centroid is None:
            centroid = await self._made_of_samples(want)
            if centroid is not None:
                data = centroid.to_bytes()
                await in_background(lambda: _write(path, data))
        self._made[want.key] = centroid

    async def _made_of_samples(self, want: _Want) -> Centroid | None:
        expert, base = want.expert, want.census.base
        started = time.perf_counter()
        try:
            features = [await self._of(want, sample) for sample in expert.manifest.samples]
        except (RelayError, StoreError, OSError) as error:
            log.warning("no_centroid", expert=expert.ref, base_adapter=base.ref, error=str(error))
            return None
        except Exception:
            log.exception("no_centroid", expert=expert.ref, base_adapter=base.ref)
            return None
        seconds = round(time.perf_counter() - started, 1)
        log.info("centroid_made", expert=expert.ref, base_adapter=base.ref, samples=len(features), seconds=seconds)
        return Centroid(want.census.origin, mean_direction(np.stack(features)))

    async def _of(self, want: _Want, sample: str) -> Vector:
        prompt: Prompt = await in_background(lambda: self._chat.render([{"role": "user", "content": sample}]))
        started = time.perf_counter()
        census = want.census
        seed = census.origin.projection_seed
        feature_D = await self._gradients.of(census.base, prompt, width=census.width, seed=seed)
        await asyncio.sleep(time.perf_counter() - started)
        return feature_D


def _read(path: Path, census: Census) -> Centroid | None:
    """None where there is none that can be used."""
    try:
        centroid = read_centroid(path)
    except (InvalidAdapter, OSError):
        return None
    return centroid if (centroid.origin, len(centroid.vector_D)) == (census.origin, census.width) else None


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all; without it, it is made again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{time.monotonic_ns()}.new")
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError as error:
        log.warning("centroid_not_kept", path=str(path), error=str(error))
