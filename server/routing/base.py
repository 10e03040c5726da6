"""What every router takes and gives. Knows experts and scores; nothing of how scores are computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from expert_store import Catalog, ExpertVersion
from server.engine.answerer import Answerer, Weighted, experts_of, shares_of
from server.engine.prompt_states import States
from server.engine.types import Branches, IndicatorLogits
from server.errors import RouterNotReady
from server.model.chat import Prompt

ScoringRouter = Literal["chain", "gradient", "learned"]
RouterName = Literal[ScoringRouter, "none"]
Reason = Literal["accepted", "no_acceptance", "weighted", "pinned", "router_none"]


class Prober(Protocol):
    """Asks experts about one prompt and holds what they computed until it is dropped."""

    async def score(self, experts: Sequence[ExpertVersion]) -> list[IndicatorLogits]:
        """Indicator logits of each, asked together in one batch.

        Raises StoreError where an expert's files cannot be read, RequestTooLarge or ExpertTooLarge where there can
        never be room for them, PromptTooLong where their accept strings do not fit the context behind the prompt; then
        none of them holds anything.
        """
        ...

    def drop(self, experts: Sequence[ExpertVersion]) -> None:
        """Frees what these experts' probes hold."""
        ...

    def prefetch(self, experts: Sequence[ExpertVersion]) -> None:
        """Starts reading what will be asked next, if nobody accepts before."""
        ...


class RoutingSession(Prober, Protocol):
    """All that routers may ask of the engine for one prompt."""

    async def prompt_states(self) -> States:
        """[L, D] fp32: the mean over the prompt's tokens of what enters each layer of the base."""
        ...

    def wakes(self, expert: ExpertVersion) -> bool:
        """Whether the expert could answer: False for an activated one whose invocation tokens the prompt lacks."""
        ...


@dataclass(frozen=True)
class Considered:
    """One expert's answer to "is this yours?", or the `problem` that kept it from being asked."""

    expert: str
    version: int
    score: float
    accepted: bool
    problem: str | None = None


@dataclass(frozen=True)
class Shortlist:
    """Whom the chain is to ask about one prompt, in chain order.

    Of `num_chain` experts `size` were wanted, or all where that is 0; `num_unprofiled` that cannot be judged are among
    `experts` beside them. To `num_unfamiliar` the prompt is unlike all they were trained on.
    """

    experts: tuple[ExpertVersion, ...]
    size: int
    num_unprofiled: int
    num_unfamiliar: int
    num_chain: int
    seconds: float

    @property
    def num_proposed(self) -> int:
        return len(self.experts) - self.num_unprofiled

    @property
    def num_left_out(self) -> int:
        """For others whose profiles lie nearer."""
        return self.num_chain - len(self.experts) - self.num_unfamiliar


@dataclass(frozen=True)
class Decision:
    """Who answers and why. `expert` None is the base model; `fallback`: it, or the pool's fallback expert, answers for
    want of one that accepts.

    `score` is an accepting expert's own; `shortlist` None: the whole chain was there to be asked. `shadows` are what
    other routers made of the same prompt.
    """

    router: RouterName
    answerer: Answerer
    score: float | None
    fallback: bool
    reason: Reason
    considered: tuple[Considered, ...]
    catalog_generation: int
    shortlist: Shortlist | None = None
    shadows: tuple["Shadow", ...] = ()

    @property
    def expert(self) -> ExpertVersion | None:
        """The one expert that answers; None for the base model and for mixtures."""
        return self.answerer if isinstance(self.answerer, ExpertVersion) else None

    @property
    def experts(self) -> tuple[ExpertVersion, ...]:
        """Everybody whose weights the answer needs."""
        return experts_of(self.answerer)

    @property
    def shares(self) -> tuple[Weighted, ...]:
        """Who answers, and with which weight."""
        return shares_of(self.answerer)

    @property
    def leader(self) -> ExpertVersion | None:
        """The expert with the largest weight, of equal ones the first; None is the base model."""
        return max(self.shares, key=lambda share: share.weight).expert if self.shares else None

    @property
    def is_routed(self) -> bool:
        """Whether a router was asked at all."""
        return self.reason not in ("pinned", "router_none")


@dataclass(frozen=True)
class Shadow:
    """What another router would have decided, which nobody acted on; where `decision` is None, why it said nothing."""

    router: ScoringRouter
    seconds: float
    decision: Decision | None
    problem: str | None = None


@dataclass(frozen=True)
class RouterStatus:
    """Whether a router can decide on one catalog. `missing` says what it lacks, and `way_out` the command to run then.

    `version` names what it decides with, where that is trained and versioned; `pending` counts experts that will take
    part as soon as what they lack has been made; `problems` say what went wrong there, ready or not.
    """

    router: ScoringRouter
    version: int | None = None
    missing: tuple[str, ...] = ()
    way_out: str | None = None
    pending: int = 0
    problems: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return not self.missing

    def require(self) -> None:
        """Raises RouterNotReady."""
        if self.missing:
            raise RouterNotReady(self.router, missing=self.missing, way_out=self.way_out)


class RoutePlan(Protocol):
    """One request's routing, tied to one catalog and one version of the router, whatever is published meanwhile."""

    @property
    def readable(self) -> Sequence[ExpertVersion]:
        """Every version whose files this request may come to read."""
        ...

    def branches(self, shortlist: Shortlist | None) -> Branches:
        """The most probes this request can hold at a time."""
        ...

    async def route(self, prompt: Prompt, session: RoutingSession, shortlist: Shortlist | None) -> Decision:
        """Who answers. A probe of the chosen expert may stay held; all others are dropped."""
        ...


class Router(Protocol):
    """Chooses who answers. Lives on the event loop's thread."""

    def status(self, catalog: Catalog) -> RouterStatus:
        """Quick: asked with every `GET /routers`."""
        ...

    def plan(self, catalog: Catalog) -> RoutePlan:
        """Raises RouterNotReady."""
        ...


def pinned(router: RouterName, expert: ExpertVersion, catalog: Catalog) -> Decision:
    """The request named its expert."""
    return Decision(router, expert, None, False, "pinned", (), catalog.generation)


def unrouted(catalog: Catalog) -> Decision:
    """The request asked for the base model."""
    return Decision("none", None, None, False, "router_none", (), catalog.generation)
