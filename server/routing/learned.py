"""The learned router (L2R, arXiv 2408.09053): a trained gate for every expert in every layer. Knows no models.

One pass of the base over the prompt gives the state that enters each layer; the gates make weights of it, once for the
whole answer. A router was trained over exact versions of experts: if one of them is gone or has been replaced, it
is not ready. An expert that came later has no row in it: its gate is closed until the router is trained anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from expert_store import Catalog, CorruptStore, ExpertVersion, RoutedExpert, RouterDraft, RouterVersion
from server.engine.answerer import OutputMixture
from server.engine.types import Branches
from server.errors import NonFiniteLogits
from server.model.chat import Prompt
from server.model.gates import Array, GateNetwork, read_network
from server.routing.base import Decision, RouterStatus, RoutingSession, Shortlist

WAY_OUT = "relay train router --memory memory.jsonl --store DIR --out DIR --register"


class RouterShelf(Protocol):
    """Where trained routers are; `expert_store.ExpertStore` in production."""

    def read_router(self) -> RouterVersion | None: ...

    def router_mark(self) -> tuple[int, ...] | None: ...


@dataclass(frozen=True)
class _Loaded:
    """A router as it was read; or why it could not be."""

    router: RouterVersion | None
    network: GateNetwork | None
    problem: str | None = None


@dataclass(frozen=True)
class SlotRoom:
    """Who can answer together: an expert of rank r takes ceil(r / slot_rank) of the slots."""

    num_slots: int
    slot_rank: int

    def lack(self, experts: Sequence[ExpertVersion]) -> str | None:
        """Why these never can; None: they can."""
        needed = sum(-(-expert.rank // self.slot_rank) for expert in experts)
        if needed <= self.num_slots:
            return None
        return (
            f"its {len(experts)} experts need {needed} slots together, the server has {self.num_slots}: start it "
            "with more --expert-slots, or train the router over fewer"
        )


class LearnedRouter:
    """Looks at the shelf with every request, so that a router is in use as soon as it is published."""

    def __init__(self, shelf: RouterShelf, *, base_fingerprint: str, room: SlotRoom) -> None:
        self._shelf = shelf
        self._base_fingerprint = base_fingerprint
        self._room = room
        self._mark: tuple[int, ...] | None = None
        self._loaded = _Loaded(None, None)

    def status(self, catalog: Catalog) -> RouterStatus:
        """Reads the disk only where another router has come into use."""
        return self._status(self._current(), catalog)

    def plan(self, catalog: Catalog) -> "LearnedPlan":
        """Raises RouterNotReady."""
        loaded = self._current()
        self._status(loaded, catalog).require()
        assert loaded.router is not None, "a router that is ready has been read. This is a bug."
        assert loaded.network is not None, "a router that is ready has been read. This is a bug."
        return LearnedPlan(_experts_of(loaded.router.manifest, catalog), loaded.network, catalog.generation)

    def _status(self, loaded: _Loaded, catalog: Catalog) -> RouterStatus:
        if loaded.router is None:
            problem = loaded.problem or "no router has been trained for this pool"
            return RouterStatus("learned", missing=(problem,), way_out=WAY_OUT)
        manifest, subject = loaded.router.manifest, f"version {loaded.router.version}"
        missing = tuple(misfits(manifest, subject, catalog, self._base_fingerprint))
        if not missing and (lack := self._room.lack(_experts_of(manifest, catalog))):
            missing = (f"{subject} cannot answer: {lack}",)
        way_out = WAY_OUT if missing else None
        return RouterStatus("learned", version=loaded.router.version, missing=missing, way_out=way_out)

    def _current(self) -> _Loaded:
        try:
            mark = self._shelf.router_mark()
        except OSError as error:
            return _Loaded(None, None, problem=f"the routers' folder cannot be read: {error}")
        if mark != self._mark or self._loaded.problem is not None:  # what could not be read may have been restored
            self._loaded = _load(self._shelf)
            self._mark = mark
        return self._loaded


@dataclass(frozen=True)
class LearnedPlan:
    """One router over one catalog; `experts` in the order of the network's rows."""

    experts: tuple[ExpertVersion, ...]
    network: GateNetwork
    catalog_generation: int

    @property
    def readable(self) -> tuple[ExpertVersion, ...]:
        return self.experts

    def branches(self, shortlist: Shortlist | None) -> Branches:  # noqa: ARG002 - a shortlist is for those that ask
        """Its pass over the prompt takes the room of a plain probe."""
        return Branches(plain=1)

    async def route(self, prompt: Prompt, session: RoutingSession, shortlist: Shortlist | None) -> Decision:  # noqa: ARG002
        """A mixture of all whose gates are open; the base where none is. Raises NonFiniteLogits."""
        states_LD = await session.prompt_states()
        if not np.isfinite(states_LD).all():
            raise NonFiniteLogits(None)
        mixture = mixture_of(self.experts, self.network.weights(states_LD))
        if mixture is None:
            return Decision("learned", None, None, True, "no_acceptance", (), self.catalog_generation)
        return Decision("learned", mixture, None, False, "weighted", (), self.catalog_generation)


def mixture_of(experts: tuple[ExpertVersion, ...], weight_LE: Array) -> OutputMixture | None:
    """Those experts whose weight is above 0 in some layer; None without any."""
    taking_part = [index for index in range(len(experts)) if weight_LE[:, index].any()]
    if not taking_part:
        return None
    weights = tuple(tuple(float(w) for w in row) for row in weight_LE[:, taking_part])
    return OutputMixture(tuple(experts[index] for index in taking_part), weights)


def _load(shelf: RouterShelf) -> _Loaded:
    try:
        router = shelf.read_router()
        if router is None:
            return _Loaded(None, None)
        manifest = router.manifest
        shape = (manifest.num_layers, len(manifest.experts), manifest.width)
        return _Loaded(router, read_network(router.weights_path, gates=manifest.gates, shape=shape))
    except (CorruptStore, OSError) as error:
        return _Loaded(None, None, f"the router in use cannot be read: {error}")


def misfits(router: RouterDraft, subject: str, catalog: Catalog, base_fingerprint: str) -> list[str]:
    """What keeps a router, which the sentences call `subject`, from deciding on a catalog."""
    if router.base_fingerprint != base_fingerprint:
        return [f"{subject} was trained on base {router.base_fingerprint}, this server runs {base_fingerprint}"]
    over = f"{subject} was trained over"
    found = []
    for expert in router.experts:
        live = catalog.experts[expert.name].live if expert.name in catalog.experts else None
        if _trained_over(expert, catalog) is None:
            found.append(f"{over} {expert.name}@{expert.version}, which is gone")
        elif live is not None and live.version != expert.version:
            found.append(f"{over} {expert.name}@{expert.version}, and {live.ref} is live now")
    return found


def _experts_of(router: RouterDraft, catalog: Catalog) -> tuple[ExpertVersion, ...]:
    """Those it was trained over and that are here, in the order of its rows."""
    found = [_trained_over(expert, catalog) for expert in router.experts]
    return tuple(expert for expert in found if expert is not None)


def _trained_over(expert: RoutedExpert, catalog: Catalog) -> ExpertVersion | None:
    versions = catalog.experts[expert.name].versions if expert.name in catalog.experts else {}
    found = versions.get(expert.version)
    return found if found is not None and found.digest == expert.digest else None
