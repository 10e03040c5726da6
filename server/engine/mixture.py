"""An answer whose next-token logits are a weighted sum over several experts. Knows lanes and logits; no routing.

    z = sum over branches of weight * z_branch      every branch appends the token sampled from z   (ELREA, 2502.00089)

The branches are lanes of one session, so rows of the same mixed batch as everybody else's. Where a step has no room for
all of them, the logits of those that came first are kept until the last has come.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from server.engine.expert_pool import Access
from server.engine.jobs import Answer, Resources, Waking
from server.engine.session_state import Lane, SessionState
from server.engine.step_logits import StepLogits


@dataclass(frozen=True)
class Branch:
    """One of the summed logits. `waking` None is the base model; `accept` stands before an expert's answer."""

    waking: Waking | None
    accept: tuple[int, ...]
    weight: float


@dataclass(eq=False, kw_only=True)
class MixtureJob(Answer):
    """An answer of several branches; no two of them have the same expert."""

    branches: Seq[Branch]
    _lanes: list[Lane] = field(default_factory=list)
    _logits: dict[int, Tensor] = field(default_factory=dict)  # by branch, of the token that is due

    @property
    def lanes(self) -> Seq[Lane]:
        return self._lanes

    @property
    def refs(self) -> str | None:
        return ", ".join(branch.waking.expert.ref for branch in self.branches if branch.waking is not None) or None

    def prepare(self, state: SessionState, resources: Resources) -> Access:
        """Opens all lanes at once and drops whatever was held; returns what those behind may do."""
        if self._lanes:
            return resources.access
        experts = [branch.waking.expert for branch in self.branches if branch.waking is not None]
        pinned = state.try_pin(experts, resources.pool, resources.access)
        if isinstance(pinned, Access):
            return pinned
        for lane in list(state.lanes()):
            state.drop(lane, resources.blocks)  # their room is reserved for the answer
        slots = iter(pinned)
        for branch in self.branches:
            tokens = [*state.prompt.tokens, *branch.accept]
            if branch.waking is None:
                self._lanes.append(state.open_base(state.prompt.tokens, resources.prefix, wants_logits=True))
            else:
                expert, start = branch.waking.expert, branch.waking.start
                self._lanes.append(state.open_lane(expert, next(slots), start, tokens, resources.prefix))
        return resources.access

    def take_logits(self, logits: StepLogits) -> Tensor | None:
        """[V] fp32 of the mixture, once every branch has come to its end; kept in part until then."""
        for index, lane in enumerate(self._lanes):
            last_V = logits.behind(lane.sequence)
            if last_V is not None:
                self._logits[index] = last_V.to(torch.float32, copy=True)
        if not self._lanes or len(self._logits) < len(self._lanes):
            return None
        mixed_V = torch.zeros_like(self._logits[0])
        for index, branch in enumerate(self.branches):  # in one order, so that a sum rounds the same in every batch
            mixed_V.add_(self._logits[index], alpha=branch.weight)
        self._logits.clear()
        return mixed_V
