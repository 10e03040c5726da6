"""A mixture's tokens are those of separate PEFT models whose logits are added in the open, alone and in any batch."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expert_store import ExpertVersion
from server.engine import Branches, Engine, LogitMixture, Sampling, Weighted
from server.errors import NonFiniteLogits, RequestTooLarge
from server.model.base import load_base
from server.model.chat import Prompt
from tests.engine.conftest import ADAPTERS, Recorder, World, small_config
from tests.support import held_steps, tiny

COUNT = 12
PROMPTS = ["What is the capital of France?", "the quick brown fox " * 12, "0123"]


def prompt_of(world: World, index: int = 0) -> Prompt:
    return world.chat.render([{"role": "user", "content": PROMPTS[index]}])


def mixture_of(world: World, base: str | None, base_weight: float, **weights: float) -> LogitMixture:
    shares = tuple(Weighted(world.experts[name], weight) for name, weight in weights.items())
    return LogitMixture(world.experts[base] if base else None, base_weight, shares)


MIXTURES = {
    "a base adapter and two experts": ("plain8", 0.25, {"plain64": 0.7, "plain12": 0.3}),
    "the base model and an expert": (None, 0.5, {"plain64": 1.0}),
    "activated experts among them": ("plain12", 0.4, {"act4": 0.5, "late8": 0.3, "plain8": 0.2}),
    "no base at all": ("plain8", 0.0, {"plain64": 0.6, "act16": 0.4}),
    "one expert": (None, 0.0, {"plain64": 2.0}),
}


async def answer(
    engine: Engine, prompt: Prompt, mixture: LogitMixture | ExpertVersion | None, sampling: Sampling | None = None
) -> list[int]:
    sampling = sampling or Sampling(max_new_tokens=COUNT, ignore_eos=True)
    num = len(mixture.branches) if isinstance(mixture, LogitMixture) else 0
    branches = Branches(mixed=num)
    async with await engine.open(prompt, max_new_tokens=sampling.max_new_tokens, branches=branches) as session:
        return [token.token async for token in session.generate(mixture, sampling)]


class SlowReference:
    """One PEFT model a branch, each run over everything anew for every token."""

    def __init__(self, world: World, base: str | None, base_weight: float, weights: dict[str, float]) -> None:
        names = {base: base_weight, **weights}
        self._stop = sorted(world.base.stop_tokens)
        self._parts = [
            (weight, tiny.oracle(world.folder, world.adapters[name] if name else None, torch.float32).eval(), name)
            for name, weight in names.items()
        ]
        self._forced = {name: tiny.forced(world.chat, world.experts[name] if name else None) for name in names}

    @torch.no_grad()
    def tokens(self, prompt: Sequence[int], count: int) -> list[int]:
        new: list[int] = []
        for _ in range(count):
            total = torch.zeros(400)
            for weight, model, name in self._parts:
                sequence = torch.tensor([[*prompt, *self._forced[name], *new]])
                total += weight * model(input_ids=sequence).logits[0, -1]
            total[self._stop] = -torch.inf
            new.append(int(total.argmax()))
        return new


@pytest.mark.parametrize("name", MIXTURES)
def test_greedy_tokens_equal_the_slow_reference(world: World, name: str) -> None:
    base, base_weight, weights = MIXTURES[name]
    reference = SlowReference(world, base, base_weight, weights)
    for index in range(len(PROMPTS)):
        prompt = prompt_of(world, index)
        mixture = mixture_of(world, base, base_weight, **weights)
        assert asyncio.run(answer(world.engine, prompt, mixture)) == reference.tokens(prompt.tokens, COUNT)


def test_mixtures_differ_from_their_parts(world: World) -> None:
    """Guards the parity test against a mixture that one branch decides alone."""
    mixture = mixture_of(world, "plain8", 0.5, plain64=1.0, plain12=0.8)
    parts: list[LogitMixture | ExpertVersion | None] = [mixture, *(world.experts[n] for n in ("plain8", "plain64"))]
    answers = {tuple(asyncio.run(answer(world.engine, prompt_of(world), part))) for part in parts}
    assert len(answers) == len(parts)


def test_a_mixed_batch_gives_the_same_tokens_as_alone(world: World) -> None:
    mixtures = [mixture_of(world, base, weight, **rest) for base, weight, rest in MIXTURES.values()]
    requests: list[tuple[int, LogitMixture | ExpertVersion | None]] = [
        *((index % 3, mixture) for index, mixture in enumerate(mixtures)),
        *((1, world.experts[name]) for name in ADAPTERS),
        (0, None),
    ]
    alone = [asyncio.run(answer(world.engine, prompt_of(world, index), who)) for index, who in requests]
    steps_before = len(world.recorder.steps)

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(answer(world.engine, prompt_of(world, i), who) for i, who in requests))

    with held_steps.together(world.engine, len(requests)):
        assert asyncio.run(together()) == alone
    num_lanes = sum(len(mixture.branches) for mixture in mixtures) + len(ADAPTERS) + 1
    assert max(step.sequences for step in world.recorder.steps[steps_before:]) > len(requests)
    assert max(step.sequences for step in world.recorder.steps[steps_before:]) <= num_lanes


@pytest.mark.parametrize("changes", [{"step_tokens": 2}, {"step_tokens": 17}, {"prefix_cache": True}])
def test_branches_that_come_in_different_steps_wait_for_each_other(
    world: World, tmp_path: Path, changes: dict[str, int]
) -> None:
    """With room for two tokens a step, three branches never come together; with a prefix cache some come early."""
    base = load_base(str(world.folder), dtype="fp32", device="cpu", cache=tmp_path)
    engine = Engine(base, world.chat, replace(small_config(), **changes), Recorder())
    engine.start()
    mixture = mixture_of(world, "plain8", 0.25, plain64=0.7, act4=0.3)
    try:
        asyncio.run(answer(engine, prompt_of(world), world.experts["plain8"]))
        expected = asyncio.run(answer(world.engine, prompt_of(world), mixture))
        assert asyncio.run(answer(engine, prompt_of(world), mixture)) == expected
    finally:
        engine.stop()
        engine.check_integrity()


def test_draws_depend_on_the_seed_alone(world: World) -> None:
    mixture = mixture_of(world, "plain8", 0.5, plain64=1.0)

    def drawn(seed: int) -> list[int]:
        sampling = Sampling(max_new_tokens=COUNT, ignore_eos=True, temperature=1.0, seed=seed)
        return asyncio.run(answer(world.engine, prompt_of(world), mixture, sampling))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_stop_token_ends_all_branches(world: World) -> None:
    mixture = mixture_of(world, "plain8", 0.25, plain64=0.75)
    first = asyncio.run(answer(world.engine, prompt_of(world), mixture))[:3]

    async def stopped() -> tuple[list[int], str | None, int]:
        branches = Branches(mixed=2)
        async with await world.engine.open(prompt_of(world), max_new_tokens=COUNT, branches=branches) as session:
            job = world.engine.jobs.answer(session.prompt, mixture, Sampling(max_new_tokens=COUNT))
            job.stop_tokens = frozenset(first[2:])
            world.engine.submit(session._state, job)
            tokens = [await job.next_token()]
            while tokens[-1].finish_reason is None:
                tokens.append(await job.next_token())
            return [token.token for token in tokens], tokens[-1].finish_reason, len(list(session._state.lanes()))

    tokens, reason, num_lanes = asyncio.run(stopped())
    assert (tokens, reason, num_lanes) == (first[: first.index(first[2]) + 1], "stop", 0)


def test_a_client_that_leaves_frees_every_branch(world: World) -> None:
    mixture = mixture_of(world, "plain8", 0.25, plain64=0.5, act16=0.25)

    async def leave(after: int) -> None:
        async with await world.engine.open(
            prompt_of(world, 1), max_new_tokens=64, branches=Branches(mixed=3)
        ) as session:
            seen = 0
            async for _ in session.generate(mixture, Sampling(max_new_tokens=64, ignore_eos=True)):
                seen += 1
                if seen > after:
                    return

    async def cancelled(delay: float) -> None:
        task = asyncio.create_task(leave(60))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def storm() -> None:
        await asyncio.gather(*(leave(n) for n in (0, 1, 5)), *(cancelled(0.002 * n) for n in range(12)))

    asyncio.run(storm())
    asyncio.run(answer(world.engine, prompt_of(world), None))  # the last closings have been seen to
    assert world.engine.blocks.num_used == 0
    assert world.engine.pool.pinned_refs() == []


def test_many_mixtures_in_little_memory_wait_and_all_answer(world: World, tmp_path: Path) -> None:
    base = load_base(str(world.folder), dtype="fp32", device="cpu", cache=tmp_path)
    config = replace(small_config(), kv_memory_bytes=1 << 18, num_slots=12)
    engine = Engine(base, world.chat, config, Recorder())
    engine.start()
    mixture = mixture_of(world, "plain8", 0.25, plain64=0.5, act16=0.25)

    async def crowd() -> list[list[int]]:
        return await asyncio.gather(*(answer(engine, prompt_of(world), mixture) for _ in range(9)))

    try:
        expected = asyncio.run(answer(world.engine, prompt_of(world), mixture))
        assert asyncio.run(crowd()) == [expected] * 9
        everybody = mixture_of(world, None, 0.0, act64=1.0, plain64=1.0)
        with pytest.raises(RequestTooLarge, match="slots"):
            asyncio.run(answer(engine, prompt_of(world), everybody))
        with pytest.raises(RequestTooLarge, match="KV blocks"):
            asyncio.run(answer(engine, prompt_of(world), mixture, Sampling(max_new_tokens=250)))
    finally:
        engine.stop()
        engine.check_integrity()


def test_logits_that_are_not_finite_end_that_mixture_alone(world: World) -> None:
    broken = mixture_of(world, "plain8", 1e38, plain64=1e38, plain12=1e38)
    sound = mixture_of(world, "plain8", 0.25, plain64=0.75)
    expected = asyncio.run(answer(world.engine, prompt_of(world), sound))

    async def both() -> tuple[object, object]:
        first, second = await asyncio.gather(
            answer(world.engine, prompt_of(world), broken),
            answer(world.engine, prompt_of(world), sound),
            return_exceptions=True,
        )
        return first, second

    failed, answered = asyncio.run(both())
    assert isinstance(failed, NonFiniteLogits)
    assert "plain8@1, plain64@1, plain12@1" in failed.message
    assert answered == expected
