"""`GET /v1/models`, all or one, and what a `model` of OpenAI's API means here. Knows no engine.

The base has its own name, every expert is a model on it, and `relay/chain`, `relay/gradient` and `relay/learned` let
that router choose. The slash keeps those names apart from those of experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from fastapi import APIRouter

from expert_store import Catalog, ExpertVersion, StoreError
from server.api.openai_schemas import ModelCard, ModelList
from server.api.openapi import errors
from server.api.serving import Ready, Serving
from server.routing.base import RouterName, RouterStatus, ScoringRouter

router = APIRouter(prefix="/v1", tags=["openai"])

ROUTERS: Mapping[str, ScoringRouter] = {f"relay/{router}": router for router in get_args(ScoringRouter)}


@dataclass(frozen=True)
class Answerer:
    """Who is to answer, in the service's terms: an expert's reference, or a router's choice."""

    expert: str | None
    router: RouterName


def answerer(model: str, *, base_id: str) -> Answerer:
    """Whether an expert of that name exists is not decided here."""
    if model == base_id:
        return Answerer(expert=None, router="none")
    if model in ROUTERS:
        return Answerer(expert=None, router=ROUTERS[model])
    return Answerer(expert=model, router="none")


@router.get("/models", responses=errors(503))
async def list_models(serving: Ready) -> ModelList:
    """The base, the routers that are ready, and every expert that answers to its bare name."""
    return ModelList(data=_cards(serving, serving.registry.catalog))


@router.get("/models/{model:path}", responses=errors(404, 409, 503))
async def show_model(model: str, serving: Ready) -> ModelCard:
    """One of them, or an expert as name@version or name@alias."""
    for card in _own_cards(serving):
        if card.id == model:
            return card
    if model in ROUTERS:
        _status(serving, ROUTERS[model]).require()
    try:
        version = serving.registry.catalog.resolve(model)
    except StoreError as error:
        error.field = "model"
        raise
    return _expert_card(serving, model, version)


def _cards(serving: Serving, catalog: Catalog) -> list[ModelCard]:
    live = [expert.live for _, expert in sorted(catalog.experts.items()) if expert.live is not None]
    own = _own_cards(serving)
    taken = {card.id for card in own}
    return [*own, *(_expert_card(serving, one.name, one) for one in live if one.name not in taken)]


def _own_cards(serving: Serving) -> list[ModelCard]:
    base, started = serving.base_id, int(serving.started_at.timestamp())
    statuses, _ = serving.service.router_statuses()
    return [
        ModelCard(id=base, created=started, parent=None),
        *(ModelCard(id=f"relay/{status.router}", created=started, parent=base) for status in statuses if status.ready),
    ]


def _status(serving: Serving, router: ScoringRouter) -> RouterStatus:
    statuses, _ = serving.service.router_statuses()
    return next(status for status in statuses if status.router == router)


def _expert_card(serving: Serving, model: str, version: ExpertVersion) -> ModelCard:
    return ModelCard(id=model, created=int(version.manifest.created_at.timestamp()), parent=serving.base_id)
