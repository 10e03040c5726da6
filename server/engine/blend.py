"""An answer that several experts compute together in every layer (L2R, arXiv 2408.09053).

Knows lanes and slots; nothing of routers or text. `wavg` and `merge` are one computation here: a layer has the same
weights for all tokens of an answer, so the weighted average of outputs, sum of w_e * s_e * B_e A_e x, is the output of
the weighted average of the products B_e A_e, and merging them for one answer would only cost memory.
"""

from dataclasses import dataclass

import torch

from server.engine.answerer import OutputMixture
from server.engine.expert_pool import Access
from server.engine.jobs import GenerateJob, Resources
from server.engine.session_state import SessionState
from server.model.lora_plan import Blend


@dataclass(eq=False, kw_only=True)
class BlendJob(GenerateJob):
    """The tokens of an answer of plain LoRAs together. The prompt goes through them from its first token on."""

    mixture: OutputMixture

    def prepare(self, state: SessionState, resources: Resources) -> Access:
        """Opens its lane and drops whatever was held; returns what those behind may do."""
        if self.lane is not None:
            return resources.access
        pinned = state.try_pin(self.mixture.experts, resources.pool, resources.access)
        if isinstance(pinned, Access):
            return pinned
        for lane in list(state.lanes()):
            state.drop(lane, resources.blocks)  # shares nothing with them, and their room is reserved for it
        blend = Blend(tuple(pinned), torch.tensor(self.mixture.layer_weights))
        tokens = [*state.prompt.tokens, *self.accept]
        self.lane = state.open_blend(self.mixture.digest, blend, tokens, resources.prefix)
        return resources.access

    @property
    def refs(self) -> str | None:
        return ", ".join(expert.ref for expert in self.mixture.experts)
