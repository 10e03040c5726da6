"""Who answers a row: the base, a named expert, one of the server's routers, or an expert picked for each row. Knows no
HTTP client.

An answerer of another kind (a new router, say) is one more class with the four members of `Served`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from training.evaluate.stream import Sample
from training.evaluate.units import Unit


@dataclass(frozen=True)
class Answer:
    """What came back. `expert` is the answering unit's key, None for the base; counts are of tokens."""

    text: str
    expert: str | None
    fallback: bool
    computed_tokens: int | None


class Pool(Protocol):
    """The running server, as answerers see it."""

    def key(self, unit: Unit) -> str: ...

    def folder(self, unit: Unit) -> Path: ...

    def expert(self, unit: Unit) -> str:
        """The name of the unit's adapter in the server, which has it from now on."""
        ...

    def order_chain(self, units: Sequence[Unit]) -> None:
        """These are asked, first to last."""
        ...

    def mix(self, base_adapter: Unit, experts: Sequence[Unit]) -> None:
        """The gradient router mixes these and nobody else."""
        ...

    def route_by(self, router: Unit, experts: Sequence[Unit]) -> None:
        """The learned router is this one, over these in its order."""
        ...


class Answerer(Protocol):
    """Who answers after some task of the stream."""

    @property
    def units(self) -> Sequence[Unit]:
        """All that has to be done before."""
        ...


class Served(Answerer, Protocol):
    """One that the server's engine plays."""

    def prepare(self, pool: Pool) -> None:
        """Brings the server into the state in which `request` means this answerer; once before its rows."""
        ...

    def request(self, pool: Pool, sample: Sample) -> dict[str, Any]:
        """The fields of `POST /generate` that choose who answers."""
        ...

    def identity(self, pool: Pool, sample: Sample) -> str:
        """Equal texts answer the sample alike; by this answers are kept."""
        ...


@dataclass(frozen=True, eq=False)
class TheBase:
    """No expert at all."""

    units: tuple[Unit, ...] = ()

    def prepare(self, pool: Pool) -> None: ...

    def request(self, pool: Pool, sample: Sample) -> dict[str, Any]:  # noqa: ARG002
        return {"router": "none"}

    def identity(self, pool: Pool, sample: Sample) -> str:  # noqa: ARG002
        return "base"


@dataclass(frozen=True, eq=False)
class OneAdapter:
    """The same adapter for everything."""

    unit: Unit

    @property
    def units(self) -> tuple[Unit, ...]:
        return (self.unit,)

    def prepare(self, pool: Pool) -> None:
        pool.expert(self.unit)

    def request(self, pool: Pool, sample: Sample) -> dict[str, Any]:  # noqa: ARG002
        return {"expert": pool.expert(self.unit)}

    def identity(self, pool: Pool, sample: Sample) -> str:  # noqa: ARG002
        return f"named {pool.key(self.unit)}"


@dataclass(frozen=True, eq=False)
class ByTask:
    """The right expert by name; the base where there is none."""

    experts: Mapping[str, Unit]

    @property
    def units(self) -> tuple[Unit, ...]:
        return tuple(self.experts.values())

    def prepare(self, pool: Pool) -> None:
        for unit in self.experts.values():
            pool.expert(unit)

    def request(self, pool: Pool, sample: Sample) -> dict[str, Any]:
        return self._answerer(sample).request(pool, sample)

    def identity(self, pool: Pool, sample: Sample) -> str:
        return self._answerer(sample).identity(pool, sample)

    def _answerer(self, sample: Sample) -> TheBase | OneAdapter:
        return OneAdapter(self.experts[sample.task]) if sample.task in self.experts else TheBase()


@dataclass(frozen=True, eq=False)
class Chain:
    """The experts ask themselves, in this order; `guarded`: none whose guard says that a prompt is not of its kind."""

    order: tuple[Unit, ...]
    guarded: bool = False

    @property
    def units(self) -> tuple[Unit, ...]:
        return self.order

    def prepare(self, pool: Pool) -> None:
        pool.order_chain(self.order)

    def request(self, pool: Pool, sample: Sample) -> dict[str, Any]:  # noqa: ARG002
        return {"router": "chain", "guard": self.guarded}

    def identity(self, pool: Pool, sample: Sample) -> str:  # noqa: ARG002
        return ("guarded " if self.guarded else "") + "chain " + " ".join(pool.key(unit) for unit in self.order)


@dataclass(frozen=True, eq=False)
class MixedByGradient:
    """The gradient router over a pool: the `mixed` nearest experts, and the base adapter with a weight of its own."""

    base_adapter: Unit
    experts: tuple[Unit, ...]
    mixed: int
    base_weight: float

    @property
    def units(self) -> tuple[Unit, ...]:
        return (self.base_adapter, *self.experts)

    def prepare(self, pool: Pool) -> None:
        pool.mix(self.base_adapter, self.experts)

    def request(self, pool: Pool, sample: Sample) -> dict[str, Any]:  # noqa: ARG002
        return {"router": "gradient", "gradient_experts": self.mixed, "gradient_base_weight": self.base_weight}

    def identity(self, pool: Pool, sample: Sample) -> str:  # noqa: ARG002
        weighed = f"gradient {self.mixed} {self.base_weight}"
        return " ".join([weighed, pool.key(self.base_adapter), *(pool.key(unit) for unit in self.experts)])


@dataclass(frozen=True, eq=False)
class MixedByGates:
    """The learned router; `router` was trained over the experts in this order."""

    router: Unit
    experts: tuple[Unit, ...]

    @property
    def units(self) -> tuple[Unit, ...]:
        return (self.router, *self.experts)

    def prepare(self, pool: Pool) -> None:
        pool.route_by(self.router, self.experts)

    def request(self, pool: Pool, sample: Sample) -> dict[str, Any]:  # noqa: ARG002
        return {"router": "learned"}

    def identity(self, pool: Pool, sample: Sample) -> str:  # noqa: ARG002
        return f"learned {pool.key(self.router)}"


@dataclass(frozen=True, eq=False)
class Picked:
    """A router beside the server: `picks` leaves PICKS, sample id to the task whose expert is to answer."""

    PICKS = "picks.json"
    experts: Mapping[str, Unit]
    picks: Unit

    @property
    def units(self) -> tuple[Unit, ...]:
        return (*self.experts.values(), self.picks)

    def prepare(self, pool: Pool) -> None:
        for unit in self.experts.values():
            pool.expert(unit)

    def request(self, pool: Pool, sample: Sample) -> dict[str, Any]:
        return self._picked(pool, sample).request(pool, sample)

    def identity(self, pool: Pool, sample: Sample) -> str:
        return self._picked(pool, sample).identity(pool, sample)

    def _picked(self, pool: Pool, sample: Sample) -> OneAdapter:
        picks = json.loads((pool.folder(self.picks) / self.PICKS).read_text())
        return OneAdapter(self.experts[picks[sample.id]])


@dataclass(frozen=True, eq=False)
class OutsideTheServer:
    """What the server cannot play (Arrow, merged factors): `answers` leaves ANSWERS, sample id to text."""

    ANSWERS = "answers.json"
    answers: Unit

    @property
    def units(self) -> tuple[Unit, ...]:
        return (self.answers,)
