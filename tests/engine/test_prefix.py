"""Equal beginnings are computed once, and give what they would have given."""

import asyncio
from collections.abc import Iterator

import pytest
import torch

from expert_store import ExpertVersion
from server.engine import Branches, Engine
from server.engine.kv_cache import BlockPool, BlockTable
from server.engine.prefix import PrefixCache
from server.engine.scheduler import Sequence
from server.model.base import load_base
from server.model.chat import ChatFormat, Prompt
from server.model.sampling import Sampling
from tests.engine.conftest import ADAPTERS, Recorder, World, small_config
from tests.support import tiny

COUNT = 12
BLOCK = 16
SYSTEM = "the quick brown fox jumps over the lazy dog " * 3


@pytest.fixture(scope="module")
def engine(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    base = load_base(str(world.folder), dtype="fp32", device="cpu", cache=tmp_path_factory.mktemp("cache"))
    engine = Engine(base, ChatFormat(base.tokenizer), small_config(prefix_cache=True), Recorder())
    engine.start()
    yield engine
    engine.stop()
    engine.check_integrity()


def prompt_of(world: World, question: str, *turns: str, system: str = SYSTEM) -> Prompt:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate((question, *turns))]
    return world.chat.render([{"role": "system", "content": system}, *messages])


async def ask(engine: Engine, prompt: Prompt, expert: ExpertVersion | None) -> tuple[list[int], int]:
    """The answer and how many tokens were computed for it."""
    async with await engine.open(prompt, max_new_tokens=COUNT) as session:
        sampling = Sampling(max_new_tokens=COUNT, ignore_eos=True)
        return [token.token async for token in session.generate(expert, sampling)], session.computed_tokens


@pytest.mark.parametrize("name", [None, *ADAPTERS])
def test_a_repeated_prompt_computes_its_end_and_gives_the_answer_of_peft(
    world: World, engine: Engine, name: str | None
) -> None:
    expert = world.experts[name] if name else None
    prompt = prompt_of(world, f"what is {name}?")
    forced = tiny.forced(world.chat, expert)
    model = tiny.oracle(world.folder, world.adapters[name] if name else None, torch.float32)
    expected = tiny.oracle_tokens(model, [*prompt.tokens, *forced], COUNT)
    first, again = asyncio.run(ask(engine, prompt, expert)), asyncio.run(ask(engine, prompt, expert))
    assert first[0] == again[0] == expected
    kept = (len(prompt.tokens) + len(forced) - 1) // BLOCK * BLOCK
    assert again[1] == len(prompt.tokens) + len(forced) + COUNT - 1 - kept


def test_a_common_system_prompt_is_shared_with_the_base_by_activated_experts_alone(
    world: World, engine: Engine
) -> None:
    async def computed(question: str, name: str | None) -> int:
        prompt = prompt_of(world, question, system=SYSTEM[::-1])
        return len(prompt.tokens) - (await ask(engine, prompt, world.experts[name] if name else None))[1]

    async def saved() -> list[int]:
        await computed("first", None)
        return [await computed("second", "act4"), await computed("third", "plain8"), await computed("fourth", "plain8")]

    activated, plain, plain_again = asyncio.run(saved())
    assert activated > 0
    assert plain < 0  # nothing saved: the answer's own tokens come on top
    assert plain_again > 0


def test_the_next_turn_of_a_chat_reuses_the_last_one(world: World, engine: Engine) -> None:
    async def asked_twice() -> tuple[int, int]:
        """Tokens that the second turn adds to the prompt, and tokens computed for it."""
        opening = prompt_of(world, "tell me about foxes")
        tokens, _ = await ask(engine, opening, None)
        answer = str(world.base.tokenizer.decode(tokens))
        prompt = prompt_of(world, "tell me about foxes", answer, "and dogs?")
        return len(prompt.tokens) - len(opening.tokens), (await ask(engine, prompt, None))[1]

    added, computed = asyncio.run(asked_twice())
    assert computed <= added + COUNT + BLOCK


def test_probes_share_the_prompt_with_later_requests(world: World, engine: Engine) -> None:
    prompt = prompt_of(world, "who answers this?", system=SYSTEM.upper())
    experts = [world.experts[name] for name in ("act4", "act16", "act64")]

    async def probe() -> tuple[list[float], int]:
        async with await engine.open(prompt, max_new_tokens=1, branches=Branches(3, 0)) as session:
            scores = await session.score(experts)
            return [score.accept for score in scores], session.computed_tokens

    first, again = asyncio.run(probe()), asyncio.run(probe())
    assert again[0] == pytest.approx(first[0], abs=1e-4)
    assert first[1] - again[1] == prompt.body_length // BLOCK * BLOCK


def test_keys_tell_apart_what_differs_in_owner_or_tokens_or_beginning() -> None:
    blocks = BlockPool(num_blocks=60, block_tokens=4)
    cache = PrefixCache(blocks, enabled=True)

    def sequence(tokens: list[int], digest: str = "", start: int | None = None) -> Sequence:
        reservation = blocks.try_reserve(4)
        assert reservation is not None
        return Sequence(tokens, BlockTable(reservation), activation_start=start, digest=digest)

    def found(new: Sequence) -> int:
        cache.adopt(new)
        return new.computed

    known = sequence(list(range(12)))
    blocks.grow(known.table, 12)
    known.computed = 12
    cache.remember(known)
    assert found(sequence(list(range(12)))) == 8  # the last token stays to be computed
    assert found(sequence(list(range(13)))) == 12
    assert found(sequence([*range(4), 99, *range(5, 12)])) == 4
    assert found(sequence([99, *range(1, 12)])) == 0
    assert found(sequence(list(range(13)), digest="sha256:a", start=6)) == 4
    assert found(sequence(list(range(13)), digest="sha256:a", start=0)) == 0
    woken = sequence(list(range(12)), digest="sha256:a", start=5)
    blocks.grow(woken.table, 12)
    woken.computed = 12
    cache.remember(woken)
    assert found(sequence(list(range(13)), digest="sha256:a", start=5)) == 12
    assert found(sequence(list(range(13)), digest="sha256:a", start=6)) == 4
    assert found(sequence(list(range(13)), digest="sha256:b", start=5)) == 4


def test_a_disabled_cache_remembers_nothing() -> None:
    blocks = BlockPool(num_blocks=4, block_tokens=4)
    cache = PrefixCache(blocks, enabled=False)
    reservation = blocks.try_reserve(4)
    assert reservation is not None
    known = Sequence(list(range(9)), BlockTable(reservation))
    blocks.grow(known.table, 8)
    known.computed = 8
    cache.remember(known)
    again = Sequence(list(range(9)), BlockTable(reservation))
    cache.adopt(again)
    assert again.computed == 0


def test_a_small_pool_forgets_rather_than_refuses(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prompts in turn through a cache with room for two of them, then the first again."""
    base = load_base(str(world.folder), dtype="fp32", device="cpu", cache=tmp_path_factory.mktemp("cache"))
    per_block = 2 * 3 * 2 * 16 * 4 * BLOCK  # keys and values, layers, heads, width, bytes, tokens
    small = Engine(
        base, ChatFormat(base.tokenizer), small_config(prefix_cache=True, kv_memory_bytes=30 * per_block), Recorder()
    )
    small.start()
    try:
        prompts = [prompt_of(world, f"number {i}") for i in (*range(6), 0)]
        answers = [asyncio.run(ask(small, prompt, None))[0] for prompt in prompts]
        assert answers[0] == answers[-1]
    finally:
        small.stop()
        small.check_integrity()
