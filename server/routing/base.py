"""What every router takes and gives. Knows experts and scores; nothing of how scores are computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from expert_store import Catalog, ExpertVersion
from server.engine.types import IndicatorLogits

RouterName = Literal["chain", "none"]
Reason = Literal["accepted", "no_acceptance", "pinned", "router_none"]


class Prober(Protocol):
    """Asks experts about one prompt and holds what they computed until it is dropped."""

    async def score(self, experts: Sequence[ExpertVersion]) -> list[IndicatorLogits]:
        """Indicator logits of each, asked together in one batch."""
        ...

    def drop(self, experts: Sequence[ExpertVersion]) -> None:
        """Frees what these experts' probes hold."""
        ...

    def prefetch(self, experts: Sequence[ExpertVersion]) -> None:
        """Starts reading what will be asked next, if nobody accepts before."""
        ...


@dataclass(frozen=True)
class Considered:
    """One expert's answer to "is this yours?"."""

    expert: str
    version: int
    score: float
    accepted: bool


@dataclass(frozen=True)
class Shortlist:
    """Whom the chain is to ask about one prompt, in chain order.

    Of `num_chain` experts `size` were wanted; `num_unprofiled` that cannot be judged are among `experts` beside them.
    """

    experts: tuple[ExpertVersion, ...]
    size: int
    num_unprofiled: int
    num_chain: int
    seconds: float

    @property
    def num_proposed(self) -> int:
        return len(self.experts) - self.num_unprofiled

    @property
    def num_left_out(self) -> int:
        return self.num_chain - len(self.experts)


@dataclass(frozen=True)
class Decision:
    """Who answers and why. `expert` None is the base model; `fallback`: it answers for want of an expert.

    `shortlist` None: the whole chain was there to be asked.
    """

    router: RouterName
    expert: ExpertVersion | None
    score: float | None
    fallback: bool
    reason: Reason
    considered: tuple[Considered, ...]
    catalog_generation: int
    shortlist: Shortlist | None = None


def pinned(router: RouterName, expert: ExpertVersion, catalog: Catalog) -> Decision:
    """The request named its expert."""
    return Decision(router, expert, None, False, "pinned", (), catalog.generation)


def unrouted(catalog: Catalog) -> Decision:
    """The request asked for the base model."""
    return Decision("none", None, None, False, "router_none", (), catalog.generation)
