"""Figures by hand, and prompts that are what the options say."""

import random
from collections import Counter

import pytest

from benchmarks.serving.client import Completed, Failed
from benchmarks.serving.load import Round
from benchmarks.serving.statistics import Figures, NothingMeasured, Spread, failures, figures, ratios, summarise
from benchmarks.serving.work import POPULARITIES, Popularity, Work, deal, jobs

WORK = Work(num_requests=12, prompt_words=7, max_tokens=5, popularity="distinct", template="{}", seed=1)


def answer(first: float, inter: float, tokens: int = 10) -> Completed:
    return Completed(first_token=first, inter_token=inter, completion_tokens=tokens)


def of(tokens_per_second: float, seconds: float) -> Figures:
    return Figures(tokens_per_second, seconds, seconds, seconds, seconds)


def test_a_round_is_its_tokens_over_its_time_and_percentiles_of_its_requests() -> None:
    outcomes = tuple(answer(first=number / 10, inter=number / 100) for number in range(101))
    ran = figures(Round(20.0, outcomes))
    assert ran.tokens_per_second == pytest.approx(1010 / 20)
    assert (ran.first_token_p50, ran.first_token_p95) == (pytest.approx(5.0), pytest.approx(9.5))
    assert (ran.inter_token_p50, ran.inter_token_p95) == (pytest.approx(0.5), pytest.approx(0.95))


def test_failures_cost_time_and_give_nothing_else() -> None:
    ran = Round(2.0, (answer(1.0, 0.1), Failed("late"), Failed("late"), Failed("odd")))
    assert figures(ran).tokens_per_second == 5
    assert figures(ran).first_token_p95 == 1.0
    assert failures([ran, ran]) == {"late": 4, "odd": 2}
    with pytest.raises(NothingMeasured, match="odd"):
        figures(Round(1.0, (Failed("odd"),)))


def test_a_spread_is_the_median_with_the_lowest_and_the_highest() -> None:
    assert summarise([of(1, 9), of(7, 3), of(4, 5)])["tokens_per_second"] == Spread(4, 1, 7)
    assert summarise([of(1, 9), of(7, 3)])["first_token_p95"] == Spread(6, 3, 9)


def test_ratios_are_of_neighbours_and_not_of_medians() -> None:
    ours, theirs = [of(10, 2), of(40, 4), of(90, 9)], [of(10, 1), of(10, 1), of(30, 9)]
    assert ratios(ours, theirs)["tokens_per_second"] == Spread(3, 1, 4)
    assert ratios(ours, theirs)["inter_token_p50"] == Spread(2, 1, 4)
    with pytest.raises(ValueError, match="zip"):
        ratios(ours, theirs[:2])


def test_a_round_has_prompts_of_its_own_and_both_sides_have_the_same() -> None:
    ours, theirs = jobs(WORK, ["a", "b"], 1), jobs(WORK, ["x", "y"], 1)
    assert [job.prompt for job in ours] == [job.prompt for job in theirs]
    assert {len(job.prompt.split()) for job in ours} == {7}
    assert {job.max_tokens for job in ours} == {5}
    prompts = {job.prompt for number in range(3) for job in jobs(WORK, ["a"], number)}
    assert len(prompts) == 36


def test_the_template_goes_around_the_words() -> None:
    work = Work(num_requests=1, prompt_words=2, max_tokens=5, popularity="distinct", template="<u>{}<a>{x}", seed=1)
    [job] = jobs(work, ["a"], 0)
    assert job.prompt.startswith("<u>")
    assert job.prompt.endswith("<a>{x}")
    assert "{}" not in job.prompt


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_models_are_dealt_by_their_popularity(popularity: Popularity) -> None:
    count = Counter(deal(popularity, 4, 4000, random.Random(5)))
    shares = [count[index] / 4000 for index in range(4)]
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4
    expected = {
        "distinct": [0.25] * 4,
        "uniform": [0.25] * 4,
        "zipf": [1 / (harmonic * (1 + index)) for index in range(4)],
        "identical": [1.0, 0.0, 0.0, 0.0],
    }[popularity]
    assert shares == pytest.approx(expected, abs=0.03)
    if popularity == "distinct":
        assert deal(popularity, 3, 7, random.Random(5)) == [0, 1, 2, 0, 1, 2, 0]
