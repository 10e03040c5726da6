"""Sampling against transformers' own logits processors, and the independence of rows."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from server.model.sampling import SampleRow, Sampling, highest, penalise, rows_of, sample, sample_row, truncate

VOCABULARY = 300


def row(
    sampling: Sampling, *, prompt: tuple[int, ...] = (), new: tuple[int, ...] = (), forbidden: tuple[int, ...] = ()
) -> SampleRow:
    return SampleRow(sampling, prompt, new, forbidden, sampling.new_generator(torch.device("cpu")))


@pytest.fixture
def logits_V() -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(3)) * 3


@pytest.mark.parametrize("top_k", [0, 1, 7, 299, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 0.001])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.6])
def test_truncation_keeps_what_transformers_keeps(
    logits_V: torch.Tensor, top_k: int, top_p: float, min_p: float
) -> None:
    temperature = 0.7
    expected = TemperatureLogitsWarper(temperature)(None, logits_V[None].clone())
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)

    kept = truncate(logits_V / temperature, Sampling(top_k=top_k, top_p=top_p, min_p=min_p))

    torch.testing.assert_close(kept, expected[0])
    assert torch.isfinite(kept).any()


def test_repetition_penalty_equals_transformers(logits_V: torch.Tensor) -> None:
    seen = (3, 5, 5, 299)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([seen]), logits_V[None].clone())[0]
    penalised = penalise(logits_V.clone(), row(Sampling(repetition_penalty=1.3), prompt=seen[:2], new=seen[2:]))
    torch.testing.assert_close(penalised, expected)


def test_presence_penalty_counts_the_answer_once_and_not_the_prompt(logits_V: torch.Tensor) -> None:
    changed = penalise(logits_V.clone(), row(Sampling(presence_penalty=0.5), prompt=(9,), new=(3, 3, 4))) - logits_V
    assert changed[[3, 4]].tolist() == pytest.approx([-0.5, -0.5])
    assert changed.count_nonzero() == 2


@pytest.mark.parametrize("size", [0.0, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("penalty", [5e-324, 1e-46, 1e-45, 1e-30, 10.0])
@pytest.mark.parametrize("temperature", [0.0, 1e-5, 2.0])
def test_no_extreme_makes_a_row_without_a_token_or_takes_a_forbidden_one(
    logits_V: torch.Tensor, size: float, penalty: float, temperature: float
) -> None:
    """All that users may send; 0 times the infinity of a forbidden token is no number, and ended the engine once."""
    logits_V = logits_V.div(logits_V.abs().max()) * size
    everything = tuple(range(VOCABULARY))
    for truncated in (Sampling(), Sampling(top_k=1), Sampling(top_p=1e-30), Sampling(min_p=1.0)):
        sampling = replace(truncated, temperature=temperature, repetition_penalty=penalty, presence_penalty=-2.0)
        asked = row(sampling, prompt=everything, new=(1, 2), forbidden=(0, int(logits_V.argmax())))
        assert sample_row(logits_V, asked) not in asked.forbidden


def test_forbidden_tokens_are_never_chosen(logits_V: torch.Tensor) -> None:
    best = int(logits_V.argmax())
    assert sample(logits_V[None], [row(Sampling())]) == [best]
    assert sample(logits_V[None], [row(Sampling(), forbidden=(best,))]) == [int(logits_V.topk(2).indices[1])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1024, 768, 640, VOCABULARY])  # pieces of 512, 256, 128; none
def test_the_highest_are_those_that_torch_finds(width: int, dtype: torch.dtype) -> None:
    logits_BV = torch.randn(40, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    logits_BV[1] = 0  # all alike
    logits_BV[2, [width // 2, width - 1]] = 9.0  # two alike, in two pieces
    logits_BV[3] = -torch.inf
    logits_BV[4, width - 2] = torch.nan
    assert torch.equal(highest(logits_BV), logits_BV.argmax(dim=-1))


def test_rows_are_copied_only_where_some_are_left_out() -> None:
    logits_BV = torch.randn(3, 5)
    assert rows_of(logits_BV, [0, 1, 2]) is logits_BV
    assert torch.equal(rows_of(logits_BV, [2, 0]), logits_BV[[2, 0]])


def test_a_seed_fixes_the_draws_whatever_the_batch(logits_V: torch.Tensor) -> None:
    seeded = Sampling(temperature=1.0, seed=11)
    alone = row(seeded)
    draws_alone = [sample_row(logits_V, alone) for _ in range(5)]
    shared, other = row(seeded), row(Sampling(temperature=1.5, seed=12))
    draws_shared = [sample(torch.stack([logits_V, logits_V]), [other, shared])[1] for _ in range(5)]
    assert draws_alone == draws_shared
    assert len(set(draws_alone)) > 1


def test_draws_follow_the_distribution() -> None:
    logits_V = torch.tensor([0.0, 1.0, 2.0])
    source = row(Sampling(temperature=1.0, seed=0))
    counts = torch.bincount(torch.tensor([sample_row(logits_V, source) for _ in range(4000)]), minlength=3)
    torch.testing.assert_close(counts / 4000, logits_V.softmax(-1), atol=0.03, rtol=0)
