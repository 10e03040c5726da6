"""Makes centroids of samples, and gives a registration its own: that, or the one that came, if it fits. Knows no HTTP
and not what is published.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np

from expert_store import (
    BASE_ALIAS,
    CENTROID_FILE,
    Catalog,
    Centroid,
    ExpertVersion,
    InvalidAdapter,
    Origin,
    read_centroid,
)
from server.background import in_background
from server.errors import InvalidRequest
from server.model.chat import ChatFormat, Prompt
from server.model.gradient import mean_direction
from server.routing.gradient import Census, GradientSource, base_adapter, fits, take_census


def sample_prompts(chat: ChatFormat, samples: Sequence[str]) -> list[Prompt]:
    """Each as a user's message. Raises InvalidRequest where the chat template refuses that."""
    try:
        return [chat.render([{"role": "user", "content": sample}]) for sample in samples]
    except jinja2.TemplateError as error:
        raise InvalidRequest(f"the base model's chat template refuses its samples: {error}") from error


async def make_centroid(
    gradients: GradientSource, census: Census, prompts: Sequence[Prompt], *, rests: bool = False
) -> Centroid:
    """The direction of the mean of the prompts' features, one after the other. At least one prompt.

    `rests`: after each as long as it took, so that others come in between. Raises InvalidRequest where a prompt has no
    gradient, NonFiniteGradient, InvalidAdapter.
    """
    features = []
    for prompt in prompts:
        started = time.perf_counter()
        features.append(await gradients.of(census.base, prompt, width=census.width, seed=census.origin.projection_seed))
        if rests:
            await asyncio.sleep(time.perf_counter() - started)
    return Centroid(census.origin, mean_direction(np.stack(features)))


class Centroids:
    """Holds what comes against the pool's base adapter, and follows the pool's own projection."""

    def __init__(self, gradients: GradientSource, chat: ChatFormat) -> None:
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
        if base is not None and base.name == name:
            return f"none: {base.ref} is the base adapter, which experts are compared by and which needs none itself"
        if not samples:
            return "none, for want of samples: the gradient router leaves it out"
        if base is None:
            return (
                "none yet, for want of a base adapter in the pool: one is made of its samples in the background "
                f"as soon as a version bears the alias {BASE_ALIAS}"
            )
        census = self._census(catalog)
        if census is None:
            return "none, since those of the pool were projected differently"
        if not census.fitting:
            return (
                "none yet, since the pool has none that says how they are projected: one is made of its samples in the "
                "background"
            )
        try:
            prompts = await in_background(lambda: sample_prompts(self._chat, samples))
            centroid = await make_centroid(self._gradients, census, prompts)
        except InvalidRequest as error:
            return f"none, since its samples give none: {error.message}"
        except (InvalidAdapter, OSError) as error:  # the base adapter's files, which are not the upload's fault
            return (
                f"none yet, since base adapter {base.ref} cannot be read; it is tried again in the background: {error}"
            )
        path.write_bytes(centroid.to_bytes())
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
