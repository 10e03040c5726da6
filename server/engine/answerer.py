"""Who computes an answer: the base, one expert, or several with weights. Knows weights; nothing of tensors."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from expert_store import ExpertVersion


@dataclass(frozen=True)
class Weighted:
    """An expert and its share of a mixture."""

    expert: ExpertVersion
    weight: float


@dataclass(frozen=True)
class OutputMixture:
    """Every adapted layer adds the weighted outputs of several experts (L2R, arXiv 2408.09053).

    `layer_weights[l][e]` is the weight of `experts[e]` in decoder layer l; in a layer the weights sum to 1.
    """

    experts: tuple[ExpertVersion, ...]
    layer_weights: tuple[tuple[float, ...], ...]

    @cached_property
    def digest(self) -> str:
        """Names who computes, with which weights: what one mixture has cached is no other's."""
        parts = [expert.digest for expert in self.experts]
        parts += [weight.hex() for weights in self.layer_weights for weight in weights]
        return "mixture:" + hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def shares(self) -> tuple[Weighted, ...]:
        """Each expert with its mean weight over the layers."""
        num_layers = len(self.layer_weights)
        means = [sum(column) / num_layers for column in zip(*self.layer_weights, strict=True)]
        return tuple(Weighted(expert, mean) for expert, mean in zip(self.experts, means, strict=True))


@dataclass(frozen=True)
class LogitMixture:
    """Every step adds weighted next-token logits: z = base_weight * z_base + sum of w_c * z_c.

    ELREA, arXiv 2502.00089. All branches append the same token. `base` is the adapter the experts started from; None is
    the base model.
    """

    base: ExpertVersion | None
    base_weight: float
    shares: tuple[Weighted, ...]

    @property
    def branches(self) -> tuple[tuple[ExpertVersion | None, float], ...]:
        """Who computes, with which weight; nobody whose weight is 0."""
        everybody = ((self.base, self.base_weight), *((share.expert, share.weight) for share in self.shares))
        return tuple((expert, weight) for expert, weight in everybody if weight)

    @property
    def experts(self) -> tuple[ExpertVersion, ...]:
        """Everybody who computes, the base adapter among them."""
        return tuple(expert for expert, _ in self.branches if expert is not None)


Mixture = OutputMixture | LogitMixture
Answerer = ExpertVersion | Mixture | None  # None: the base model


def experts_of(answerer: Answerer) -> tuple[ExpertVersion, ...]:
    """Everybody whose weights the answer needs."""
    if answerer is None:
        return ()
    return (answerer,) if isinstance(answerer, ExpertVersion) else answerer.experts


def shares_of(answerer: Answerer) -> tuple[Weighted, ...]:
    """Who answers and with which weight; a single expert with all of it, the base model's own part left out."""
    if answerer is None:
        return ()
    return (Weighted(answerer, 1.0),) if isinstance(answerer, ExpertVersion) else answerer.shares
