"""Measures an expert on held-out rows: decision margins and exact answers. Knows no files and no thresholds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from server.model.chat import IndicatorTokens
from training.batches import Collator
from training.data import Example
from training.suffix import SuffixRunner

_BATCH_SIZE = 16


@dataclass(frozen=True)
class Verdict:
    """What the expert makes of one example.

    `margin` is logit(accept) - logit(reject). `exact` tells whether greedy decoding after the accept indicator gives
    the target's tokens: it does if and only if each is the most likely one after those before it. Other tokens may
    spell the same text, so the share of exact texts is no lower than this.
    """

    margin: float
    exact: bool


@torch.no_grad()
def examine(
    runner: SuffixRunner, examples: Sequence[Example], *, indicators: IndicatorTokens, collator: Collator
) -> list[Verdict]:
    """One verdict an example, in their order; prompt and target go through the model once."""
    verdicts: dict[int, Verdict] = {}
    for batch in _batches(examples):
        part = runner.on_device(collator.part([examples[i] for i in batch]))
        logits_LV = runner.label_logits(part)
        right_L = logits_LV.argmax(dim=1) == part["target_L"]
        margin_L = logits_LV[:, indicators.accept_token] - logits_LV[:, indicators.reject_token]
        first = 0
        for index in batch:
            example = examples[index]
            end = first + len(example.tokens) - example.target_start
            margin = margin_L[first + example.decision - example.target_start].item()
            answer = first + example.decision - example.target_start + len(indicators.accept) - indicators.shared_length
            exact = bool(right_L[answer:end].all()) if example.accepts else False
            verdicts[index] = Verdict(margin, exact)
            first = end
    return [verdicts[i] for i in range(len(examples))]


def _batches(examples: Sequence[Example]) -> Iterator[list[int]]:
    """Indices in batches of similar length."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    for first in range(0, len(order), _BATCH_SIZE):
        yield order[first : first + _BATCH_SIZE]
