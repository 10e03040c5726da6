"""Mixtures by gradient (ELREA, arXiv 2502.00089): the nearer a prompt's gradient to those of an expert's rows, the more
the expert counts. Knows vectors and experts; nothing of how a prompt becomes a vector.

    s_c = cos(feature, centroid_c), standardised over the pool;   w = softmax(s);   z = w_base z_base + sum of w_c z_c

Choices of ours: only the `num_experts` with the largest weights answer, scaled so that theirs sum to 1 (the paper has
all C of them); w_base is 1 / C unless it is set. The pool is everybody whose live version has a centroid made with the
one version that bears the alias `gradient-base`, which is the base adapter: published with the version, or made of its
samples since.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from expert_store import BASE_ALIAS, Catalog, Centroid, ExpertVersion, InvalidAdapter, Origin, Vector
from server.engine.adapter_file import unreadable
from server.engine.answerer import LogitMixture, Weighted
from server.engine.types import Branches
from server.model.chat import Prompt
from server.model.sketch import Projection
from server.routing.base import Considered, Decision, RouterStatus, RoutingSession, Shortlist

_WAY_OUT = "relay train elrea --data rows.jsonl --out DIR --register NAME"
_SHOWN = 3
_LEAST_SPREAD = 1e-9  # of scores; below it nobody is nearer than anybody else


class GradientSource(Protocol):
    """The seam to the model; `server.model.gradient.GradientWorker` in production."""

    @property
    def base_fingerprint(self) -> str: ...

    @property
    def feature(self) -> str: ...

    async def of(self, base: ExpertVersion, prompt: Prompt, *, width: int, seed: int) -> Vector:
        """[width] of length 1, of the prompt's gradient through a base adapter."""
        ...


@dataclass(frozen=True, eq=False)
class GradientPool:
    """Who can be mixed: C experts, and their centroids [C, D] in the same order."""

    base: ExpertVersion
    experts: tuple[ExpertVersion, ...]
    centroids_CD: NDArray[np.float32]
    origin: Origin
    pending: int = 0  # experts whose centroid is being made
    problems: tuple[str, ...] = ()  # with the making of centroids

    @property
    def width(self) -> int:
        return int(self.centroids_CD.shape[1])

    def among(self, wakes: Callable[[ExpertVersion], bool]) -> "GradientPool":
        """With those alone that the prompt can wake; all of them where it wakes nobody, so that the answer says so."""
        awake = [place for place, expert in enumerate(self.experts) if wakes(expert)]
        if len(awake) in (0, len(self.experts)):
            return self
        experts = tuple(self.experts[place] for place in awake)
        return replace(self, experts=experts, centroids_CD=self.centroids_CD[awake])


@dataclass(frozen=True)
class _Missing:
    """Why there is no pool; `way_out` None where waiting is enough."""

    reasons: tuple[str, ...]
    pending: int = 0
    problems: tuple[str, ...] = ()
    way_out: str | None = _WAY_OUT


@dataclass(frozen=True, eq=False)
class Census:
    """Who of a catalog has a centroid that fits, and who could get one made of its samples.

    `found` have any; `fitting` are in the pool. All of the pool's are of `origin`, [width], those that are made too.
    """

    base: ExpertVersion
    found: tuple[tuple[ExpertVersion, Centroid], ...]
    fitting: tuple[tuple[ExpertVersion, Centroid], ...]
    wanting: tuple[ExpertVersion, ...]
    origin: Origin
    width: int


class Made(Protocol):
    """Centroids that were made of samples; `server.made_centroids.MadeCentroids` in production."""

    @property
    def revision(self) -> int:
        """Grows with whatever changes here."""
        ...

    def get(self, expert: ExpertVersion, census: Census) -> Centroid | None: ...

    def num_pending(self, census: Census) -> int:
        """How many are still to be made."""
        ...

    def problems(self, census: Census) -> tuple[str, ...]:
        """What kept those from being made that have been tried in vain, given up or not."""
        ...


def base_adapter(catalog: Catalog) -> ExpertVersion | None:
    """The version that bears the alias, if exactly one does and it can be one."""
    bearers = _bearers(catalog)
    return bearers[0] if len(bearers) == 1 and bearers[0].kind == "lora" else None


def take_census(catalog: Catalog, *, base_fingerprint: str, feature: str) -> "Census | _Missing":
    """Or why there can be no pool. Experts of another base adapter's own ELREA pool, which began from it, stay out."""
    base = base_adapter(catalog)
    if base is None:
        return _Missing((_no_base(_bearers(catalog)),))
    live = [expert.live for expert in catalog.experts.values() if expert.name != base.name]
    versions = [version for version in live if version is not None]
    found = [(version, version.centroid) for version in versions if version.centroid is not None]
    fitting = [
        (version, centroid) for version, centroid in found if fits(centroid, base, base_fingerprint, feature) is None
    ]
    shapes = {(centroid.origin.projection_seed, len(centroid.vector_D)) for _, centroid in fitting}
    if len(shapes) > 1:
        said = ", ".join(f"seed {seed} to {width}" for seed, width in sorted(shapes))
        return _Missing((f"the centroids of {_refs([v for v, _ in fitting])} were projected differently: {said}",))
    projection = Projection()
    [(seed, width)] = shapes or {(projection.seed, projection.width)}
    inside = {version.digest for version, _ in fitting}
    wanting = [v for v in versions if v.digest not in inside and v.manifest.samples and not _is_of_a_pool(v)]
    origin = Origin(base_fingerprint, base.adapter_digest, feature, seed)
    return Census(base, tuple(found), tuple(fitting), tuple(wanting), origin, width)


def find_pool(
    catalog: Catalog, *, base_fingerprint: str, feature: str, made: Made | None = None
) -> "GradientPool | _Missing":
    """The pool of a catalog, or what it lacks."""
    census = take_census(catalog, base_fingerprint=base_fingerprint, feature=feature)
    if isinstance(census, _Missing):
        return census
    pending = 0 if made is None else made.num_pending(census)
    problems = () if made is None else made.problems(census)
    members = [*census.fitting, *(() if made is None else _made(census, made))]
    if not members and pending:
        reason = (
            f"centroids of {pending} experts are being made with base adapter {census.base.ref}: wait for the first"
        )
        return _Missing((reason, *problems), pending, problems, way_out=None)
    if not members:
        return _Missing((*_nobody_fits(census, base_fingerprint, feature), *problems), pending, problems)
    vectors_CD = np.stack([centroid.vector_D for _, centroid in members])
    experts = tuple(version for version, _ in members)
    return GradientPool(census.base, experts, vectors_CD, census.origin, pending, problems)


def fits(centroid: Centroid, base: ExpertVersion, base_fingerprint: str, feature: str) -> str | None:
    """Why a centroid cannot be compared with gradients through `base`; None where it can."""
    origin = centroid.origin
    if origin.base_fingerprint != base_fingerprint:
        return f"it was made on base {origin.base_fingerprint}, this server runs {base_fingerprint}"
    if origin.base_adapter != base.adapter_digest:
        return f"it was made with base adapter {origin.base_adapter}, the pool's is {base.ref}, {base.adapter_digest}"
    if origin.feature != feature:
        return f"it is of {origin.feature!r}, this server compares {feature!r}"
    return None


def mixture_weights(score_C: Sequence[float], num_experts: int) -> list[float]:
    """[C] softmax of the standardised scores; all but the `num_experts` largest are 0, and those sum to 1.

    Of equal ones the first. (ELREA, section 3.4; leaving some out is ours.)
    """
    scores_C = np.asarray(score_C, dtype=np.float64)
    spread = scores_C.std()
    standard_C = (scores_C - scores_C.mean()) / spread if spread > _LEAST_SPREAD else np.zeros_like(scores_C)
    weights_C = np.exp(standard_C - standard_C.max())
    kept = np.argsort(-weights_C, kind="stable")[:num_experts]
    mixed_C = np.zeros_like(weights_C)
    mixed_C[kept] = weights_C[kept] / weights_C[kept].sum()
    return [float(weight) for weight in mixed_C]


def decide_mixture(
    pool: GradientPool, feature_D: Vector, *, num_experts: int, base_weight: float | None, catalog_generation: int
) -> Decision:
    """The mixture a feature asks for. `considered` are all of the pool with their cosines, those in it accepted."""
    score_C = [float(score) for score in pool.centroids_CD @ feature_D]
    weight_C = mixture_weights(score_C, num_experts)
    shares = [Weighted(expert, weight) for expert, weight in zip(pool.experts, weight_C, strict=True) if weight]
    shares.sort(key=lambda share: -share.weight)
    mixture = LogitMixture(pool.base, 1 / len(pool.experts) if base_weight is None else base_weight, tuple(shares))
    considered = tuple(
        Considered(expert.name, expert.version, score, weight > 0)
        for expert, score, weight in zip(pool.experts, score_C, weight_C, strict=True)
    )
    return Decision("gradient", mixture, None, False, "weighted", considered, catalog_generation)


@dataclass(frozen=True)
class GradientPlan:
    """One request's routing on one pool."""

    pool: GradientPool
    source: GradientSource
    num_experts: int
    base_weight: float | None
    catalog_generation: int

    def wanted(self, num_experts: int | None, base_weight: float | None) -> "GradientPlan":
        """With what a request wants otherwise; None is as it is set."""
        return replace(
            self,
            num_experts=self.num_experts if num_experts is None else num_experts,
            base_weight=self.base_weight if base_weight is None else base_weight,
        )

    @property
    def readable(self) -> Sequence[ExpertVersion]:
        return (self.pool.base, *self.pool.experts)

    def branches(self, shortlist: Shortlist | None) -> Branches:  # noqa: ARG002 - nobody is asked
        """The base adapter, unless it weighs nothing, and the experts answer side by side."""
        return Branches(mixed=(self.base_weight != 0) + min(self.num_experts, len(self.pool.experts)))

    async def route(
        self,
        prompt: Prompt,
        session: RoutingSession,
        shortlist: Shortlist | None,  # noqa: ARG002
    ) -> Decision:
        """Raises InvalidRequest where the prompt has no gradient, NonFiniteGradient; CorruptStore where the base
        adapter cannot be read."""
        pool = self.pool.among(session.wakes)
        try:
            feature_D = await self.source.of(pool.base, prompt, width=pool.width, seed=pool.origin.projection_seed)
        except (InvalidAdapter, OSError) as error:
            raise unreadable(pool.base, error) from error
        return decide_mixture(
            pool,
            feature_D,
            num_experts=self.num_experts,
            base_weight=self.base_weight,
            catalog_generation=self.catalog_generation,
        )


class GradientRouter:
    """Keeps the pool of the newest catalog it has seen."""

    def __init__(
        self,
        source: GradientSource,
        *,
        num_experts: int = 2,
        base_weight: float | None = None,
        made: Made | None = None,
    ) -> None:
        """`made`: where experts that came without a centroid may get theirs from."""
        self._source = source
        self._made = made
        self._num_experts = num_experts
        self._base_weight = base_weight
        self._finding = threading.Lock()
        self._found: tuple[tuple[int, int], GradientPool | _Missing] | None = None

    def status(self, catalog: Catalog) -> RouterStatus:
        """`version` is the base adapter's."""
        pool = self._pool(catalog)
        if isinstance(pool, _Missing):
            return RouterStatus(
                "gradient",
                missing=pool.reasons,
                way_out=pool.way_out,
                pending=pool.pending,
                problems=pool.problems,
            )
        return RouterStatus("gradient", version=pool.base.version, pending=pool.pending, problems=pool.problems)

    def plan(self, catalog: Catalog) -> GradientPlan:
        """Raises RouterNotReady."""
        self.status(catalog).require()
        pool = self._pool(catalog)
        assert isinstance(pool, GradientPool), "a router that is ready has a pool. This is a bug."
        return GradientPlan(pool, self._source, self._num_experts, self._base_weight, catalog.generation)

    def _pool(self, catalog: Catalog) -> "GradientPool | _Missing":
        with self._finding:
            seen = (catalog.generation, 0 if self._made is None else self._made.revision)
            if self._found is not None and self._found[0] == seen:
                return self._found[1]
            source = self._source
            pool = find_pool(catalog, base_fingerprint=source.base_fingerprint, feature=source.feature, made=self._made)
            if self._found is None or self._found[0] < seen:
                self._found = (seen, pool)
            return pool


def _bearers(catalog: Catalog) -> list[ExpertVersion]:
    experts = catalog.experts.values()
    return [expert.versions[expert.aliases[BASE_ALIAS]] for expert in experts if BASE_ALIAS in expert.aliases]


def _is_of_a_pool(version: ExpertVersion) -> bool:
    training = version.manifest.training
    return version.centroid is not None and training is not None and training.recipe == "elrea"


def _made(census: Census, made: Made) -> list[tuple[ExpertVersion, Centroid]]:
    """Those of the wanting that have theirs by now."""
    found = [(version, made.get(version, census)) for version in census.wanting]
    return [(version, centroid) for version, centroid in found if centroid is not None]


def _no_base(bearers: Sequence[ExpertVersion]) -> str:
    if not bearers:
        return f"no version has the alias {BASE_ALIAS}, so there is no base adapter to take gradients with"
    if len(bearers) > 1:
        return f"{_refs(bearers)} all have the alias {BASE_ALIAS}: remove it from all but one"
    return f"{bearers[0].ref} has the alias {BASE_ALIAS}, but a base adapter must be a plain LoRA"


def _nobody_fits(census: Census, base_fingerprint: str, feature: str) -> tuple[str, ...]:
    if not census.found:
        return (f"no expert has a centroid made with base adapter {census.base.ref}",)
    return tuple(
        f"the centroid of {version.ref} does not fit: {fits(centroid, census.base, base_fingerprint, feature)}"
        for version, centroid in census.found[:_SHOWN]
    )


def _refs(versions: Sequence[ExpertVersion]) -> str:
    more = f" and {len(versions) - _SHOWN} more" if len(versions) > _SHOWN else ""
    return ", ".join(version.ref for version in versions[:_SHOWN]) + more
