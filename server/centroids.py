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
from server.model.sketch import Projection
from server.routing.gradient import GradientPool, base_adapter, find_pool, fits


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
        origin, width = self._origin(base, catalog)
        prompts = [self._chat.render([{"role": "user", "content": sample}]) for sample in samples]
        try:
            vector_D = await self._gradients.centroid(base, prompts, width=width, seed=origin.projection_seed)
        except InvalidRequest as error:
            return f"none, since its samples give none: {error.message}"
        except (InvalidAdapter, OSError) as error:  # the base adapter's files, which are not the upload's fault
            return f"none, since base adapter {base.ref} cannot be read: {error}"
        path.write_bytes(Centroid(origin, vector_D).to_bytes())
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
        pool = find_pool(catalog, base_fingerprint=gradients.base_fingerprint, feature=gradients.feature)
        if isinstance(pool, GradientPool):
            given, wanted = (
                f"seed {origin.projection_seed} to {width} values"
                for origin, width in ((centroid.origin, len(centroid.vector_D)), (pool.origin, pool.width))
            )
            if given != wanted:
                raise _refusal(f"it was projected with {given}, the pool's with {wanted}")
        return f"it came with one, made with base adapter {base.ref}"

    def _origin(self, base: ExpertVersion, catalog: Catalog) -> tuple[Origin, int]:
        """What the pool's centroids have in common, or will, and their width."""
        gradients = self._gradients
        pool = find_pool(catalog, base_fingerprint=gradients.base_fingerprint, feature=gradients.feature)
        if isinstance(pool, GradientPool):
            return pool.origin, pool.width
        projection = Projection()
        origin = Origin(gradients.base_fingerprint, base.adapter_digest, gradients.feature, projection.seed)
        return origin, projection.width


def _refusal(reason: str) -> InvalidAdapter:
    way_out = "train the pool anew on this server's base, or leave the file out and give samples"
    return InvalidAdapter(CENTROID_FILE, f"{CENTROID_FILE}: {reason}: {way_out}")
