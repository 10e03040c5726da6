"""Gives a registration its centroid: judges the one that came, or makes one of samples. Knows no HTTP."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from expert_store import (
    CENTROID_FILE,
    Catalog,
    Centroid,
    ExpertVersion,
    InvalidAdapter,
    Origin,
    Vector,
    read_centroid,
)
from server.errors import InvalidRequest
from server.model.chat import ChatFormat, Prompt
from server.routing.gradient import Census, base_adapter, fits, take_census


class Gradients(Protocol):
    """What centroids are made with; `server.model.gradient.GradientWorker` in production."""

    @property
    def base_fingerprint(self) -> str: ...

    @property
    def feature(self) -> str: ...

    async def centroid(self, base: ExpertVersion, prompts: Sequence[Prompt], *, width: int, seed: int) -> Vector: ...


class Centroids:
    """Holds what comes against the pool's base adapter, and follows the pool's own projection."""

    def __init__(self, gradients: Gradients, chat: ChatFormat) -> None:
        self._gradients = gradients
        self._chat = chat

    async def provide(self, folder: Path, samples: Sequence[str], *, name: str, catalog: Catalog) -> str:
        """What is to be said of the centroid in `folder`, which is put there if it can be made.

        Raises InvalidAdapter for one that does not fit.
        """
        path = folder / CENTROID_FILE
        base = base_adapter(catalog)
        if path.exists() or path.is_symlink():
            return self._judge(read_centroid(path), base, catalog)
        if base is None or base.name == name or not samples:
            lacks = "samples" if base is not None else "a base adapter in the pool"
            return f"none, for want of {lacks}: the gradient router leaves it out"
        census = self._census(catalog)
        if census is None:
            return "none, since those of the pool were projected differently"
        prompts = [self._chat.render([{"role": "user", "content": sample}]) for sample in samples]
        seed = census.origin.projection_seed
        try:
            vector_D = await self._gradients.centroid(base, prompts, width=census.width, seed=seed)
        except InvalidRequest as error:
            return f"none, since its samples give none: {error.message}"
        except (InvalidAdapter, OSError) as error:  # the base adapter's files, which are not the upload's fault
            return f"none, since base adapter {base.ref} cannot be read: {error}"
        path.write_bytes(Centroid(census.origin, vector_D).to_bytes())
        return f"made from {len(prompts)} samples, with base adapter {base.ref}"

    def _judge(self, centroid: Centroid, base: ExpertVersion | None, catalog: Catalog) -> str:
        gradients, made_on = self._gradients, centroid.origin.base_fingerprint
        if made_on != gradients.base_fingerprint:
            raise _refusal(f"it was made on base {made_on}, this server runs {gradients.base_fingerprint}")
        if base is None:
            return "it came with one; there is no base adapter yet to compare by"
        reason = fits(centroid, base, gradients.base_fingerprint, gradients.feature)
        if reason is not None:
            raise _refusal(reason)
        census = self._census(catalog)
        if census is not None and census.fitting:
            given = _projection(centroid.origin, len(centroid.vector_D))
            wanted = _projection(census.origin, census.width)
            if given != wanted:
                raise _refusal(f"it was projected with {given}, the pool's with {wanted}")
        return f"it came with one, made with base adapter {base.ref}"

    def _census(self, catalog: Catalog) -> Census | None:
        """What the pool's centroids have in common, or will; None where they are at odds."""
        gradients = self._gradients
        census = take_census(catalog, base_fingerprint=gradients.base_fingerprint, feature=gradients.feature)
        return census if isinstance(census, Census) else None


def _projection(origin: Origin, width: int) -> str:
    return f"seed {origin.projection_seed} to {width} values"


def _refusal(reason: str) -> InvalidAdapter:
    way_out = "train the pool anew on this server's base, or leave the file out and give samples"
    return InvalidAdapter(CENTROID_FILE, f"{CENTROID_FILE}: {reason}: {way_out}")
