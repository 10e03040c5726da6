"""Publishes learned routers that were trained elsewhere, while requests run. Knows no HTTP and trains nothing."""

from dataclasses import dataclass

import structlog

from expert_store import ROUTER_FILE, Catalog, ExpertStore, InvalidRouter, RouterDraft, RouterVersion, Staged
from server.background import in_background
from server.model.base import Base
from server.model.gates import parse_network
from server.registry import Check
from server.routing.learned import WAY_OUT, misfits

log = structlog.get_logger()

_HEADER_BYTES = 64 * 1024  # more than a safetensors header with two tensors has
_BYTES_PER_NUMBER = 4


@dataclass(frozen=True)
class RouterRegistration:
    """A router in use, what was checked before, and the catalog generation it was held against."""

    router: RouterVersion
    checks: tuple[Check, ...]
    catalog_generation: int


class RouterRegistry:
    """Everything is checked before anything is published. An expert of rank r takes ceil(r / slot_rank) slots."""

    def __init__(self, store: ExpertStore, base: Base, *, num_slots: int, slot_rank: int) -> None:
        self._store = store
        self._num_slots = num_slots
        self._slot_rank = slot_rank
        self._base_fingerprint = base.spec.fingerprint
        self._num_layers: int = base.model.config.num_hidden_layers
        self._width: int = base.model.config.hidden_size

    async def register(self, staged: Staged, draft: RouterDraft) -> RouterRegistration:
        """Makes the staged router.safetensors the version in use, from the next request on.

        Raises InvalidRouter; the router in use then stays.
        """
        catalog = self._store.catalog
        reasons = misfits(draft, "it", catalog, self._base_fingerprint)
        if reasons:
            field = "base_fingerprint" if draft.base_fingerprint != self._base_fingerprint else "experts"
            raise InvalidRouter(field, f"the router does not fit this pool: {'; '.join(reasons)}: {WAY_OUT}")
        _check_kinds(draft, catalog)
        self._check_slots(draft, catalog)
        await in_background(lambda: self._check_weights(staged, draft))
        router = await in_background(lambda: self._store.publish_router(staged, draft))
        log.info("router_registered", version=router.version, experts=len(draft.experts), digest=router.digest)
        return RouterRegistration(router, self._passed(draft), catalog.generation)

    def _check_slots(self, draft: RouterDraft, catalog: Catalog) -> None:
        """All of its experts answer together."""
        ranks = [catalog.resolve(f"{expert.name}@{expert.version}").rank for expert in draft.experts]
        needed = sum(-(-rank // self._slot_rank) for rank in ranks)
        if needed > self._num_slots:
            raise InvalidRouter(
                "experts",
                f"its {len(ranks)} experts need {needed} slots together, the server has {self._num_slots}: start it "
                "with more --expert-slots, or train the router over fewer",
            )

    def _check_weights(self, staged: Staged, draft: RouterDraft) -> None:
        given, runs = (draft.num_layers, draft.width), (self._num_layers, self._width)
        if given != runs:
            raise InvalidRouter(
                "num_layers" if given[0] != runs[0] else "width",
                f"the router is for {given[0]} layers of width {given[1]}, this base has {runs[0]} of {runs[1]}",
            )
        shape = (self._num_layers, len(draft.experts), self._width)
        path = staged.folder / ROUTER_FILE
        most = _HEADER_BYTES + _BYTES_PER_NUMBER * shape[0] * shape[1] * (shape[2] + 1)
        if path.stat().st_size > most:
            raise InvalidRouter(ROUTER_FILE, f"{ROUTER_FILE} has {path.stat().st_size} bytes, {most} are enough for it")
        try:
            parse_network(path.read_bytes(), gates=draft.gates, shape=shape)
        except ValueError as error:
            raise InvalidRouter(ROUTER_FILE, f"{ROUTER_FILE} {error}: send what `relay train router` wrote") from None

    def _passed(self, draft: RouterDraft) -> tuple[Check, ...]:
        return (
            Check("base", True, f"trained on the base this server runs, {self._base_fingerprint}"),
            Check("experts", True, f"its {len(draft.experts)} plain LoRAs are here as it was trained over them"),
            Check("slots", True, f"its experts fit the server's {self._num_slots} slots together"),
            Check("weights", True, f"finite numbers for {self._num_layers} layers of width {self._width}"),
        )


def _check_kinds(draft: RouterDraft, catalog: Catalog) -> None:
    refs = [f"{expert.name}@{expert.version}" for expert in draft.experts]
    if len({expert.name for expert in draft.experts}) < len(refs):
        raise InvalidRouter("experts", f"experts: {', '.join(refs)}: each name may stand there once")
    activated = [ref for ref in refs if catalog.resolve(ref).kind != "lora"]
    if activated:
        reason = "wake up behind the prompt, and only plain LoRAs can be composed: train the router without them"
        raise InvalidRouter("experts", f"experts: {', '.join(activated)} {reason}")
