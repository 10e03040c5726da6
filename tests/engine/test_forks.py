"""Forks read what they share in their parent's blocks, and go on as if all of it were their own."""

from pathlib import Path

import pytest
from torch import Tensor

from server.engine.kv_cache import BlockPool, BlockTable
from server.engine.prefix import PrefixCache
from server.engine.runner import Runner
from server.engine.scheduler import BlockCopy, Fork, Sequence, StepPlan, plan_step
from server.model.base import load_base
from server.model.native import load_kernels
from tests.engine.conftest import World

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
def test_forks_go_on_from_what_they_borrowed(world: World, tmp_path: Path, with_kernels: bool) -> None:
    """Three steps, each against the whole sequences computed anew: root mean square difference below 0.06 of the
    logits' spread, as bf16 rounds."""
    base = load_base(str(world.folder), dtype="bf16", device="cpu", cache=tmp_path)
    kernels = load_kernels(tmp_path) if with_kernels else None
    runner = Runner(base, kv_memory_bytes=1 << 22, block_tokens=BLOCK, num_slots=1, slot_rank=8, kernels=kernels)
    if with_kernels and not runner.borrows:
        pytest.skip("no kernels here, so nothing is borrowed")
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
