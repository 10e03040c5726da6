"""Forks read what they share in their parent's blocks, and go on as if all of it were their own."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from server.engine import Branches, Engine, Sampling
from server.engine.kv_cache import BlockPool, BlockTable
from server.engine.prefix import PrefixCache
from server.engine.runner import Runner
from server.engine.scheduler import BlockCopy, Fork, Sequence, StepPlan, plan_step
from server.model.base import load_base
from server.model.chat import ChatFormat
from server.model.logits import Logits
from server.model.native import Kernels
from tests.engine.conftest import Recorder, World, small_config

BLOCK = 16
PROMPT = [3 + 7 * i % 200 for i in range(2 * BLOCK + 5)]
TAILS = [[11], [12, 13], [14, 15, 16, 17, 18, 19], [21]]


def fork_of(parent: Sequence, tail: list[int], blocks: BlockPool) -> Sequence:
    """As `SessionState.fork_base` makes them, of the whole parent."""
    shared = len(parent.tokens)
    blocks.grow(parent.table, shared)
    table, copied = blocks.fork(parent.table, shared)
    assert copied is not None
    copy = BlockCopy(*copied, shared % BLOCK)
    return Sequence([*parent.tokens, *tail], table, computed=shared, fork=Fork(parent, shared, copy))


def run(runner: Runner, blocks: BlockPool, plan: StepPlan) -> Tensor:
    """[W, V] fp32, with what the engine does around a step."""
    for segment in plan.segments:
        blocks.grow(segment.sequence.table, segment.end)
    logits = runner.run(plan).all_WV.float()
    for segment in plan.segments:
        segment.sequence.computed = segment.end
        if segment.sequence.fork is not None and segment.borrowed is None:
            segment.sequence.fork.copy = None
    return logits


@pytest.mark.parametrize("with_kernels", [False, True])
def test_forks_go_on_from_what_they_borrowed(
    world: World, tmp_path: Path, with_kernels: bool, request: pytest.FixtureRequest
) -> None:
    """Three steps, each against the whole sequences computed anew: root mean square difference below 0.06 of the
    logits' spread, as bf16 rounds."""
    base = load_base(str(world.folder), dtype="bf16", device="cpu", cache=tmp_path)
    kernels = request.getfixturevalue("kernels") if with_kernels else None
    runner = Runner(base, kv_memory_bytes=1 << 22, block_tokens=BLOCK, num_slots=1, slot_rank=8, kernels=kernels)
    assert runner.borrows == with_kernels
    blocks = BlockPool(num_blocks=runner.kv.num_blocks, block_tokens=BLOCK)
    reservation = blocks.try_reserve(blocks.num_blocks)
    assert reservation is not None
    runner.kv.layers[0].fill_(50)  # what nobody has written counts for nothing
    parent = Sequence(PROMPT, BlockTable(reservation), wants_logits=False)
    forks = [fork_of(parent, tail, blocks) for tail in TAILS]
    num_copies = []
    for step in range(3):
        plan = plan_step([parent, *forks], budget=500, borrow=runner.borrows)
        num_copies.append(len(plan.copies))
        fresh = [Sequence(list(fork.tokens), BlockTable(reservation)) for fork in forks]
        logits, expected = run(runner, blocks, plan), run(runner, blocks, plan_step(fresh, budget=500))
        error_W = (logits - expected).square().mean(dim=1).sqrt() / expected.std(dim=1)
        assert (error_W < 0.06).all(), (step, error_W)
        for sequence in fresh:
            blocks.free(sequence.table)
        for index, fork in enumerate(forks):
            fork.tokens.append(30 + index)
    assert num_copies == ([0, len(TAILS), 0] if with_kernels else [len(TAILS), 0, 0])


@pytest.mark.parametrize("winner", ["act4", "act16", "late8", None])
@pytest.mark.parametrize("step_tokens", [64, 17])
def test_only_who_answers_has_a_block_copied_and_from_one_that_is_held(
    world: World,
    tmp_path: Path,
    winner: str | None,
    step_tokens: int,
    kernels: Kernels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside another request, which would get any block that is given back too early. Copied, it needs no parent."""
    base = load_base(str(world.folder), dtype="bf16", device="cpu", cache=tmp_path, kernels=kernels)
    config = replace(small_config(step_tokens=step_tokens, answer_ahead=0, prefix_cache=True), kernels=kernels)
    engine = Engine(base, ChatFormat(base.tokenizer), config, Recorder())
    copies: list[BlockCopy] = []
    run = engine._runner.run

    def watched(plan: StepPlan) -> Logits:
        copies.extend(plan.copies)
        for fork in (segment.sequence.fork for segment in plan.segments):
            if fork is not None and fork.copy is not None:
                assert fork.copy.source in fork.parent.table.blocks, "what it lacks has been given back"
        return run(plan)

    monkeypatch.setattr(engine._runner, "run", watched)
    asked = [world.experts[name] for name in ("act4", "act16", "late8")]
    prompt = world.chat.render([{"role": "user", "content": "the quick brown fox " * 4}])
    assert prompt.body_length % BLOCK, "forks would begin with a block of their own"
    assert len(prompt.tokens) % BLOCK, "forks would begin with a block of their own"

    async def chosen() -> int:
        async with await engine.open(prompt, max_new_tokens=5, branches=Branches(activated=3)) as session:
            await session.score(asked)
            expert = None if winner is None else world.experts[winner]
            session.drop([one for one in asked if one is not expert])
            tokens = session.generate(expert, Sampling(max_new_tokens=5, ignore_eos=True))
            count = len([token async for token in tokens])
            assert winner is None or session._state.base is None
            return count

    async def both() -> list[int]:
        return await asyncio.gather(chosen(), chosen())

    engine.start()
    try:
        assert asyncio.run(both()) == [5, 5]
    finally:
        engine.stop()
    engine.check_integrity()
    if step_tokens == 64:  # in smaller steps forks that are only asked go on as well
        assert len(copies) == (0 if winner is None else 2)


def test_a_block_that_lacks_a_part_is_not_remembered() -> None:
    blocks = BlockPool(num_blocks=20, block_tokens=BLOCK)
    cache = PrefixCache(blocks, enabled=True)
    reservation = blocks.try_reserve(10)
    assert reservation is not None
    parent = Sequence(PROMPT, BlockTable(reservation), computed=len(PROMPT))
    fork = fork_of(parent, list(range(40, 60)), blocks)
    cache.remember(parent)
    blocks.grow(fork.table, len(fork.tokens))
    fork.computed = len(fork.tokens)

    def num_found() -> int:
        again = Sequence([*fork.tokens, 1], BlockTable(reservation))
        cache.adopt(again)
        blocks.free(again.table)
        return again.computed // BLOCK

    cache.remember(fork)
    assert num_found() == len(PROMPT) // BLOCK
    assert fork.fork is not None
    fork.fork.copy = None
    cache.remember(fork)
    assert num_found() == len(fork.tokens) // BLOCK
