"""Publishes learned routers that were trained elsewhere, while requests run. Knows no HTTP and trains nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from expert_store import ROUTER_FILE, ExpertStore, ExpertVersion, InvalidRouter, RouterDraft, RouterVersion, Staged
from server.background import in_background
from server.candidate import Check
from server.model.base import Base
from server.model.gates import parse_network
from server.routing.learned import WAY_OUT, SlotRoom, misfits

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
    """Everything is checked before anything is published."""

    def __init__(self, store: ExpertStore, base: Base, *, room: SlotRoom) -> None:
        self._store = store
        self._room = room
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
        experts = [catalog.resolve(f"{expert.name}@{expert.version}") for expert in draft.experts]
        _check_alike(experts)
        if lack := self._room.lack(experts):
            raise InvalidRouter("experts", lack)
        await in_background(lambda: self._check_weights(staged, draft))
        router = await in_background(lambda: self._store.publish_router(staged, draft))
        log.info("router_registered", version=router.version, experts=len(draft.experts), digest=router.digest)
        return RouterRegistration(router, self._passed(draft), catalog.generation)

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
            Check("slots", True, f"its experts fit the server's {self._room.num_slots} slots together"),
            Check("weights", True, f"finite numbers for {self._num_layers} layers of width {self._width}"),
        )


def _check_alike(experts: Sequence[ExpertVersion]) -> None:
    """All have to compute the same tokens together."""
    refs = ", ".join(expert.ref for expert in experts)
    if len({expert.name for expert in experts}) < len(experts):
        raise InvalidRouter("experts", f"experts: {refs}: each name may stand there once")
    activated = [expert.ref for expert in experts if expert.kind != "lora"]
    if activated:
        reason = "wake up behind the prompt, and only plain LoRAs can be composed: train the router without them"
        raise InvalidRouter("experts", f"experts: {', '.join(activated)} {reason}")
    if len({expert.manifest.indicators if expert.answers_after_accept else None for expert in experts}) > 1:
        reason = "some answer behind an accept string and others do not: train the router over experts of one kind"
        raise InvalidRouter("experts", f"experts: {refs}: {reason}")
