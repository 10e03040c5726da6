"""Sessions under pressure: little memory, few slots, sudden cancels, broken files. Nothing leaks."""

import asyncio
import random
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from expert_store import CorruptStore, ExpertVersion, Indicators
from server import breaks
from server.background import BREAKS, begin_in_background
from server.engine import Branches, Engine, Sampling, StepStats
from server.engine.adapter_file import read_expert
from server.engine.scheduler import PATIENT_TOKENS, StepPlan
from server.errors import (
    EngineStopped,
    InvalidRequest,
    InvocationMissing,
    NonFiniteLogits,
    NotSelfSelecting,
    PromptTooLong,
    RequestTooLarge,
)
from server.model.adapter_weights import AdapterWeights
from server.model.base import load_base
from server.model.chat import ChatFormat, Prompt
from server.model.logits import Logits
from tests.engine.conftest import ADAPTERS, Recorder, World, small_config
from tests.support import held_steps, tiny
from tests.support.waiting import until, until_true


@pytest.fixture(scope="module")
def tight(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Recorder]]:
    """The same base and store, with KV memory for about two requests and slots for about two experts."""
    base = load_base(str(world.folder), dtype="fp32", device="cpu", cache=tmp_path_factory.mktemp("cache"))
    recorder = Recorder()
    config = small_config(kv_memory_bytes=60 * 16 * 768, num_slots=10, step_tokens=24)
    engine = Engine(base, ChatFormat(base.tokenizer), config, recorder)
    engine.start()
    yield engine, recorder
    engine.stop()
    engine.check_integrity()


def prompt_of(world: World, text: str) -> Prompt:
    return world.chat.render([{"role": "user", "content": text}])


async def answer(engine: Engine, prompt: Prompt, expert: ExpertVersion | None, count: int = 10) -> list[int]:
    async with await engine.open(prompt, max_new_tokens=count) as session:
        stream = session.generate(expert, Sampling(max_new_tokens=count, ignore_eos=True))
        return [token.token async for token in stream]


async def _open(engine: Engine, prompt: Prompt, branches: Branches) -> None:
    async with await engine.open(prompt, max_new_tokens=10, branches=branches):
        pass


def test_more_requests_than_memory_and_more_experts_than_slots_all_finish_unchanged(
    world: World, tight: tuple[Engine, Recorder]
) -> None:
    engine, recorder = tight
    requests = [
        (prompt_of(world, f"request {i} " * (1 + i % 5)), world.experts[name])
        for i, name in enumerate([*ADAPTERS, *reversed(ADAPTERS)])
    ]
    alone = [asyncio.run(answer(world.engine, *request)) for request in requests]

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(answer(engine, *request) for request in requests))

    assert asyncio.run(together()) == alone
    assert any(event.kind == "evict" for event in recorder.events)
    assert max(occupancy.waiting_sessions for occupancy in recorder.occupancies) > 0


@pytest.mark.parametrize("seed", range(3))
def test_random_cancels_with_little_memory_leak_nothing(
    world: World, tight: tuple[Engine, Recorder], seed: int
) -> None:
    engine, _ = tight
    chance = random.Random(seed)
    names = list(ADAPTERS)

    async def request() -> None:
        prompt = prompt_of(world, "word " * chance.randrange(1, 40))
        experts = [world.experts[name] for name in chance.sample(names, 2)]
        async with await engine.open(prompt, max_new_tokens=20, branches=Branches(2, 2)) as session:
            if chance.random() < 0.5:
                await session.score(experts)
                session.drop(experts[:1])
            winner = chance.choice([None, *experts])
            async for _ in session.generate(winner, Sampling(max_new_tokens=20, ignore_eos=True)):
                if chance.random() < 0.1:
                    return

    async def storm() -> None:
        tasks = [asyncio.create_task(request()) for _ in range(30)]
        for _ in tasks:
            await asyncio.sleep(chance.random() * 0.02)
            if chance.random() < 0.5:
                chance.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(await answer(engine, prompt_of(world, "still here"), world.experts["act4"])) == 10

    asyncio.run(storm())
    assert engine.alive


def test_leaving_a_session_frees_its_memory_within_one_step(world: World) -> None:
    engine, recorder = world.engine, world.recorder

    async def leave_early() -> None:
        prompt = prompt_of(world, "a long story")
        async with await engine.open(prompt, max_new_tokens=400) as session:
            stream = session.generate(None, Sampling(max_new_tokens=400, ignore_eos=True))
            for _ in range(3):
                await anext(stream)
            await stream.aclose()
        steps = len(recorder.steps)
        await until_true(lambda: recorder.occupancies[-1].active_sessions == 0)
        assert len(recorder.steps) - steps <= 1
        last = recorder.occupancies[-1]
        assert (last.active_sessions, last.kv_blocks_used, last.kv_blocks_reserved) == (0, 0, 0)
        assert max(occupancy.kv_blocks_reserved for occupancy in recorder.occupancies) > 400 // 16

    asyncio.run(leave_early())


def test_what_can_never_fit_is_refused_with_both_numbers(world: World, tight: tuple[Engine, Recorder]) -> None:
    prompt = prompt_of(world, "hello")
    with pytest.raises(PromptTooLong, match=r"512"):
        asyncio.run(answer(world.engine, prompt, None, count=600))
    with pytest.raises(RequestTooLarge, match=r"has 60"):
        asyncio.run(_open(tight[0], prompt, Branches(40, 40)))
    assert world.engine.alive


def test_what_experts_accept_with_counts_in_the_context(world: World) -> None:
    limit = world.base.max_context
    rendered = prompt_of(world, "hello")
    prompt = Prompt((5,) * (limit - 1 - len(rendered.tokens)) + rendered.tokens, body_length=limit - 30)
    expert = world.experts["act4"]
    assert len(asyncio.run(answer(world.engine, prompt, None, count=1))) == 1
    with pytest.raises(PromptTooLong, match=rf"stand between them .* holds {limit}"):
        asyncio.run(answer(world.engine, prompt, expert, count=1))

    async def ask() -> None:
        async with await world.engine.open(prompt, max_new_tokens=0, branches=Branches(1)) as session:
            await session.score([expert])

    with pytest.raises(PromptTooLong, match="0 new ones"):
        asyncio.run(ask())
    assert world.engine.alive


def test_an_expert_whose_invocation_is_missing_is_refused(world: World) -> None:
    prompt = Prompt(tokens=tuple(range(10, 40)), body_length=30)
    with pytest.raises(InvocationMissing, match="act4@1"):
        asyncio.run(answer(world.engine, prompt, world.experts["act4"]))


def test_an_expert_without_indicators_cannot_be_asked(world: World) -> None:
    mute = tiny.publish(world.store, world.base, world.adapters["plain8"], "mute", indicators=False)

    async def ask() -> None:
        async with await world.engine.open(prompt_of(world, "hello"), max_new_tokens=1) as session:
            await session.score([mute])

    with pytest.raises(NotSelfSelecting, match="mute"):
        asyncio.run(ask())
    named = asyncio.run(answer(world.engine, prompt_of(world, "hello"), mute))
    model = tiny.oracle(world.folder, world.adapters["plain8"], world.base.dtype)
    assert named == tiny.oracle_tokens(model, prompt_of(world, "hello").tokens, 10)


def test_files_that_vanish_fail_only_the_request_that_needs_them(world: World) -> None:
    lost = tiny.publish(world.store, world.base, world.adapters["act4"], "lost")
    for file in lost.folder.iterdir():
        file.unlink()

    async def both() -> list[object]:
        prompt = prompt_of(world, "hello")
        tasks = (answer(world.engine, prompt, lost), answer(world.engine, prompt, world.experts["act16"]))
        return await asyncio.gather(*tasks, return_exceptions=True)

    failed, fine = asyncio.run(both())
    assert isinstance(failed, CorruptStore)
    assert "lost@1 cannot be read any more" in failed.message
    assert isinstance(fine, list)
    assert world.engine.alive


def test_files_that_are_others_by_now_fail_only_the_request_that_needs_them(world: World) -> None:
    changed = tiny.publish(world.store, world.base, world.adapters["act4"], "changed")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (changed.folder / name).unlink()
        shutil.copy(world.adapters["act16"] / name, changed.folder / name)
    prompt = prompt_of(world, "hello")
    before = asyncio.run(answer(world.engine, prompt, world.experts["act16"]))
    with pytest.raises(CorruptStore, match=r"changed@1 .* rank 16, recorded were \d+ and 4"):
        asyncio.run(answer(world.engine, prompt, changed))
    assert asyncio.run(answer(world.engine, prompt, world.experts["act16"])) == before


def test_whatever_reading_raises_fails_only_who_needs_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(expert: ExpertVersion) -> AdapterWeights:
        raise ValueError(f"{expert.name} surprises")

    monkeypatch.setattr(world.engine.pool.host, "_read", read)
    plain, prompt = world.experts["plain8"], prompt_of(world, "hello")
    for digest in ("candidate:3", "sha256:surprising"):
        with pytest.raises(CorruptStore, match="plain8 surprises"):
            asyncio.run(world.engine.measure_effect(replace(plain, digest=digest), prompt))
    assert world.engine.alive


@pytest.mark.parametrize("tokens", [(), (5, 400), (5, -1)])
def test_tokens_that_the_base_cannot_read_are_refused(world: World, tokens: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="tokens"):
        asyncio.run(answer(world.engine, Prompt(tokens, body_length=0), None))
    assert world.engine.alive


def test_measured_effect_tells_an_expert_from_a_no_op(world: World) -> None:
    prompt = prompt_of(world, "hello")
    shared = world.chat.indicator_tokens(Indicators()).shared
    awake = Prompt(tokens=(*prompt.tokens, *shared), body_length=prompt.body_length)  # whatever wakes an expert up
    effects = [asyncio.run(world.engine.measure_effect(world.experts[name], awake)) for name in ADAPTERS]
    assert min(effects) > 0.05


def test_an_effect_beside_an_answer_is_measured_a_few_tokens_a_step(world: World) -> None:
    tokens = prompt_of(world, "hello there, what can you do?").tokens
    prompt, expert = Prompt(tokens, body_length=len(tokens)), world.experts["plain8"]
    alone = asyncio.run(world.engine.measure_effect(expert, prompt))
    computed: list[int] = []

    def answer_has_only_begun() -> bool:
        return all(state.computed_tokens < len(tokens) for state in world.engine._active)

    def is_measured() -> bool:
        return any(state.patient and state.jobs for state in world.engine._active)

    async def beside() -> float:
        async with await world.engine.open(prompt, max_new_tokens=60) as session:
            answer = session.generate(None, Sampling(max_new_tokens=60, ignore_eos=True))
            await anext(answer)
            first = len(world.recorder.steps)
            effect = await world.engine.measure_effect(expert, prompt)
            computed.extend(stats.tokens for stats in world.recorder.steps[first:])
            return effect

    with held_steps.steps_only_when(lambda: answer_has_only_begun() or is_measured()):
        assert asyncio.run(beside()) == pytest.approx(alone, rel=1e-4)
    assert len(computed) < 59, "the answer was to be longer than the measurement"
    assert sum(computed) > 2 * len(tokens)
    assert max(computed) <= 1 + PATIENT_TOKENS


def test_a_candidate_that_was_measured_is_not_read_again_once_it_is_published(world: World) -> None:
    version = world.experts["plain8"]
    candidate = replace(version, digest="candidate:1")
    prompt = prompt_of(world, "hello")
    before = asyncio.run(answer(world.engine, prompt, version))
    asyncio.run(world.engine.measure_effect(candidate, prompt))
    published = replace(version, digest="sha256:published", folder=version.folder / "gone")
    world.engine.adopt(candidate, published)
    assert asyncio.run(answer(world.engine, prompt, published)) == before


def test_what_was_deleted_leaves_the_host_cache(world: World) -> None:
    version = replace(world.experts["plain8"], digest="sha256:soon deleted")
    prompt = prompt_of(world, "hello")
    asyncio.run(answer(world.engine, prompt, version))
    assert version.digest in world.engine.pool.host.digests
    world.engine.forget(version)
    asyncio.run(answer(world.engine, prompt, None))  # commands are taken in order
    assert version.digest not in world.engine.pool.host.digests


def test_a_candidate_is_read_by_threads_that_give_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host, readers = world.engine.pool.host, []

    def read(expert: ExpertVersion) -> AdapterWeights:
        readers.append(threading.current_thread().name)
        return read_expert(expert, world.base.spec.linears)

    monkeypatch.setattr(host, "_read", read)
    plain, prompt = world.experts["plain8"], prompt_of(world, "hello")
    asyncio.run(world.engine.measure_effect(replace(plain, digest="candidate:2"), prompt))
    asyncio.run(answer(world.engine, prompt, replace(plain, digest="sha256:asked for")))
    candidate, asked = readers
    assert candidate.startswith("background")
    assert not asked.startswith("background")


def test_the_background_works_between_its_steps(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PATIENCE_SECONDS", "_MOST_SECONDS"):
        monkeypatch.setattr(breaks, name, 60.0)
    monkeypatch.setattr(breaks, "_SHARE", 1e6)
    runner, in_step = world.engine._runner, threading.Event()
    run, begun = runner.run, list[Future[bool]]()

    def watched(plan: StepPlan) -> Logits:
        in_step.set()
        begun.append(begin_in_background(in_step.is_set))
        until(lambda: BREAKS.num_waiting > 0 or begun[-1].done())
        logits = run(plan)
        in_step.clear()
        return logits

    monkeypatch.setattr(runner, "run", watched)
    asyncio.run(answer(world.engine, prompt_of(world, "hello"), None))
    assert len(begun) >= 10
    assert not any(work.result(10) for work in begun)


def test_minimum_length_and_stop_tokens(world: World) -> None:
    prompt = prompt_of(world, "hello")

    async def finish(sampling: Sampling) -> tuple[int, str | None]:
        async with await world.engine.open(prompt, max_new_tokens=sampling.max_new_tokens) as session:
            tokens = [token async for token in session.generate(None, sampling)]
            return len(tokens), tokens[-1].finish_reason

    free = asyncio.run(finish(Sampling(max_new_tokens=400, temperature=2.0, seed=4)))
    assert free[1] == "stop"
    longer = asyncio.run(finish(Sampling(max_new_tokens=400, min_new_tokens=free[0] + 5, temperature=2.0, seed=4)))
    assert longer[0] > free[0]
    assert asyncio.run(finish(Sampling(max_new_tokens=7, ignore_eos=True))) == (7, "length")


def test_sessions_of_a_stopped_engine_are_told(world: World, tmp_path: Path) -> None:
    base = load_base(str(world.folder), dtype="fp32", device="cpu", cache=tmp_path)
    engine = Engine(base, ChatFormat(base.tokenizer), small_config(), Recorder())
    engine.start()

    async def interrupted() -> None:
        async with await engine.open(prompt_of(world, "hello"), max_new_tokens=400) as session:
            async for _ in session.generate(None, Sampling(max_new_tokens=400, ignore_eos=True)):
                await asyncio.to_thread(engine.stop)

    with pytest.raises(EngineStopped):
        asyncio.run(interrupted())
    assert not engine.alive
    with pytest.raises(EngineStopped):
        asyncio.run(answer(engine, prompt_of(world, "hello"), None))
    engine.check_integrity()


def test_what_is_asked_while_the_engine_ends_is_told_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(world.folder), dtype="fp32", device="cpu", cache=tmp_path)
    engine = Engine(base, ChatFormat(base.tokenizer), small_config(), Recorder())
    ending, go_on = threading.Event(), threading.Event()

    def close() -> None:
        ending.set()
        assert go_on.wait(20)

    monkeypatch.setattr(engine.pool, "close", close)
    engine.start()
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    assert ending.wait(20)
    try:
        with pytest.raises(EngineStopped):
            asyncio.run(asyncio.wait_for(answer(engine, prompt_of(world, "hello"), None), timeout=5))
    finally:
        go_on.set()
        stopping.join(20)


def test_a_failing_step_stops_the_engine_and_says_so(world: World, tmp_path: Path) -> None:
    base = load_base(str(world.folder), dtype="fp32", device="cpu", cache=tmp_path)

    class Broken(Recorder):
        def on_step(self, stats: StepStats) -> None:  # noqa: ARG002 - the seam's signature
            raise RuntimeError("a step failed")

    engine = Engine(base, ChatFormat(base.tokenizer), small_config(), Broken())
    engine.start()
    with pytest.raises(EngineStopped):
        asyncio.run(answer(engine, prompt_of(world, "hello"), None))
    assert not engine.alive


def test_an_expert_that_overflows_fails_alone(world: World, tmp_path: Path) -> None:
    """Its weights are finite, as the store demands, but so large that the model's numbers are not."""
    adapter = tiny.write_adapter(tmp_path / "huge", world.folder, kind="lora", rank=4, strength=1e36)
    huge = tiny.publish(world.store, world.base, adapter, "huge")
    prompt = prompt_of(world, "hello")
    names = ["act4", "plain8", "plain64"]
    alone = [asyncio.run(answer(world.engine, prompt, world.experts[name])) for name in names]

    async def together() -> list[object]:
        tasks = [answer(world.engine, prompt, expert) for expert in (huge, *(world.experts[n] for n in names), huge)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others, last = asyncio.run(together())
    assert isinstance(first, NonFiniteLogits)
    assert isinstance(last, NonFiniteLogits)
    assert others == alone
    assert world.engine.alive
    # Blocks the broken request has left behind do not poison their next owners.
    assert [asyncio.run(answer(world.engine, prompt, world.experts[name])) for name in names] == alone


@pytest.mark.parametrize("branches", [Branches(), Branches(activated=3), Branches(plain=2), Branches(mixed=60)])
def test_room_is_the_most_that_opens(world: World, branches: Branches) -> None:
    prompt = prompt_of(world, "hello")
    most = world.engine.room(prompt, branches)
    fills_context = most == world.base.max_context - len(prompt.tokens)
    assert fills_context == (not branches.mixed), "the mixture needs more KV memory than there is"

    async def opens(new_tokens: int) -> bool:
        try:
            async with await world.engine.open(prompt, max_new_tokens=new_tokens, branches=branches):
                return True
        except (PromptTooLong, RequestTooLarge):
            return False

    assert most > 0
    assert asyncio.run(opens(most))
    assert not asyncio.run(opens(most + 1))
    full = Prompt((5,) * world.base.max_context, body_length=0)
    assert world.engine.room(full, branches) == 0


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=3, temperature=1e-30),
        Sampling(max_new_tokens=3, temperature=1e-4),
        Sampling(max_new_tokens=3, temperature=2.0, repetition_penalty=1e-30),
        Sampling(max_new_tokens=3, temperature=2.0, repetition_penalty=1e-46, min_new_tokens=1),
        Sampling(max_new_tokens=3, temperature=2.0, top_p=1e-30, min_p=1.0, top_k=1),
    ],
)
def test_extreme_sampling_values_give_tokens(world: World, sampling: Sampling) -> None:
    async def run() -> int:
        async with await world.engine.open(prompt_of(world, "hello"), max_new_tokens=3) as session:
            return len([token async for token in session.generate(None, sampling)])

    assert 1 <= asyncio.run(run()) <= 3
    assert world.engine.alive
