"""The suites of parity on a GPU, where steps that only decode are CUDA graphs. The oracles compute on the CPU."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from expert_store import Indicators
from server.engine import Branches, Engine, EngineConfig, Sampling
from server.model import lora_plan
from server.model.base import load_base
from server.model.chat import ChatFormat, Prompt
from server.model.decode_graphs import recorder_for
from server.model.gradient import GradientFeature, GradientRunner
from server.model.sketch import Projection
from server.model.states import mean_states
from tests.engine.conftest import ADAPTERS, Recorder, World, new_world, small_config
from tests.engine.suites import *  # noqa: F403 - to be run here
from tests.engine.test_blend import test_mixtures_in_a_mixed_batch_equal_themselves_alone
from tests.engine.test_parity import answer, prompt_of, test_mixed_batch_gives_the_same_tokens_as_alone
from tests.support import tiny

GPU = "cuda"


def with_graphs() -> EngineConfig:
    return replace(small_config(), recorder=recorder_for(torch.device(GPU)))


@pytest.fixture(scope="module")
def world(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with new_world(base_folder, tmp_path_factory.mktemp("world"), GPU, recorder_for(torch.device(GPU))) as made:
        yield made


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("base"))


def test_steps_that_only_decode_were_graphs(world: World) -> None:
    test_mixed_batch_gives_the_same_tokens_as_alone(world, "all_twice")
    test_mixtures_in_a_mixed_batch_equal_themselves_alone(world)
    graphs = world.engine._runner._graphs
    assert graphs is not None
    assert graphs._recordable
    assert {shape.slots for shape in graphs._recorded} == {0, 32}
    assert {shape.weighed for shape in graphs._recorded} == {False, True}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_computes_what_transformers_computes(family: str, tmp_path: Path) -> None:
    folder = tiny.write_base(tmp_path / family, family)
    base = load_base(str(folder), dtype="fp32", device=GPU, cache=tmp_path)
    chat = ChatFormat(base.tokenizer)
    engine = Engine(base, chat, with_graphs(), Recorder())
    engine.start()
    model = tiny.oracle(folder, None, torch.float32)
    prompts = [chat.render([{"role": "user", "content": text}]) for text in ("0123", "the quick brown fox " * 5)]

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(answer(engine, prompt, None, 20) for prompt in prompts))

    try:
        assert asyncio.run(together()) == [tiny.oracle_tokens(model, prompt.tokens, 20) for prompt in prompts]
        assert engine._runner._graphs is not None
        assert engine._runner._graphs._recordable
    finally:
        engine.stop()
    engine.check_integrity()


@pytest.mark.parametrize("most", [lora_plan._ALL_SLOTS, 4])
@pytest.mark.parametrize("graphs", [True, False])
def test_experts_that_change_slots_answer_the_same(
    world: World, graphs: bool, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More experts than slots: a graph recorded for one serves whoever holds its slots later. `most`: also where only
    the slots in use are multiplied."""
    prompt = prompt_of(world, 0)
    expected = {name: asyncio.run(answer(world.engine, prompt, world.experts[name])) for name in ADAPTERS}
    monkeypatch.setattr(lora_plan, "_ALL_SLOTS", most)
    base = load_base(str(world.folder), dtype="fp32", device=GPU, cache=tmp_path)
    config = replace(with_graphs() if graphs else small_config(), num_slots=9)
    engine = Engine(base, world.chat, config, Recorder())
    engine.start()
    try:
        for name in [*ADAPTERS, *reversed(ADAPTERS)]:
            assert asyncio.run(answer(engine, prompt, world.experts[name])) == expected[name]
    finally:
        engine.stop()
    engine.check_integrity()


@pytest.mark.parametrize("graphs", [True, False])
def test_bf16_logits_stay_within_tolerance_of_peft(world: World, tmp_path: Path, graphs: bool) -> None:
    """As on the CPU: root mean square difference below 0.06 of the logits' spread, here also behind decoded tokens."""
    base = load_base(str(world.folder), dtype="bf16", device=GPU, cache=tmp_path)
    config = with_graphs() if graphs else small_config()
    engine = Engine(base, ChatFormat(base.tokenizer), config, Recorder())
    engine.start()
    rendered, shared = prompt_of(world, 1), world.chat.indicator_tokens(Indicators()).shared
    prompt = Prompt(tokens=(*rendered.tokens, *shared), body_length=rendered.body_length)  # wakes up everybody

    async def logits_behind(name: str) -> tuple[list[int], torch.Tensor]:
        """What is behind the prompt, answered one by one, and the logits behind it all."""
        expert = world.experts[name]
        async with await engine.open(prompt, max_new_tokens=6, branches=Branches(plain=2)) as session:
            sampling = Sampling(max_new_tokens=5, ignore_eos=True)
            tokens = [token.token async for token in session.generate(expert, sampling)]
        behind = [*tiny.forced(world.chat, expert), *tokens]
        longer = Prompt(tokens=(*prompt.tokens, *behind), body_length=prompt.body_length)
        async with await engine.open(longer, max_new_tokens=1, branches=Branches(plain=2)) as session:
            return behind, (await session.logits(expert))[1]

    try:
        for name, adapter in world.adapters.items():
            behind, actual = asyncio.run(logits_behind(name))
            model = tiny.oracle(world.folder, adapter, torch.bfloat16).eval()
            with torch.no_grad():
                expected_TV = model(input_ids=torch.tensor([[*prompt.tokens, *behind]])).logits[0].float()
            error = (actual.cpu() - expected_TV[-1]).square().mean().sqrt() / expected_TV[-1].std()
            assert error < 0.06, (name, float(error))
            expected_TV[:, list(base.stop_tokens)] = -torch.inf  # ignored
            for place in range(len(prompt.tokens) + len(behind) - 6, len(prompt.tokens) + len(behind) - 1):
                logits_V, token = expected_TV[place], [*prompt.tokens, *behind][place + 1]
                spread = logits_V[logits_V.isfinite()].std()
                assert logits_V.max() - logits_V[token] < 0.2 * spread, name  # rounding may choose between equals
    finally:
        engine.stop()


def test_states_of_prompts_are_those_of_transformers(world: World) -> None:
    reference = AutoModelForCausalLM.from_pretrained(world.folder, dtype=torch.float32)
    prompts = [prompt_of(world, index) for index in range(3)]
    expected = mean_states(reference, [prompt.tokens for prompt in prompts])

    async def states(prompt: Prompt) -> torch.Tensor:
        async with await world.engine.open(prompt, max_new_tokens=1, branches=Branches(plain=1)) as session:
            return torch.from_numpy(await session.prompt_states())

    for prompt, wanted in zip(prompts, expected, strict=True):
        torch.testing.assert_close(asyncio.run(states(prompt)), wanted, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_cpu_while_graphs_are_recorded(world: World, tmp_path: Path) -> None:
    features = []
    base = load_base(str(world.folder), dtype="fp32", device=GPU, cache=tmp_path)
    beside = GradientFeature(GradientRunner(base, world.chat), world.adapters["plain8"], Projection(64, 0))
    engine = Engine(base, world.chat, with_graphs(), Recorder())
    on_cpu = load_base(str(world.folder), dtype="fp32", device="cpu", cache=tmp_path)
    alone = GradientFeature(GradientRunner(on_cpu, world.chat), world.adapters["plain8"], Projection(64, 0))
    prompt, ended = prompt_of(world, 1), Event()

    def measure() -> None:
        while not ended.is_set():
            features.append(torch.from_numpy(beside.of(prompt)))

    engine.start()
    thread = Thread(target=measure)
    thread.start()
    try:
        for name in (None, *ADAPTERS):
            expert = world.experts[name] if name else None
            assert asyncio.run(answer(engine, prompt, expert)) == asyncio.run(answer(world.engine, prompt, expert))
    finally:
        ended.set()
        thread.join()
        engine.stop()
    assert features
    for feature in features:
        torch.testing.assert_close(feature, torch.from_numpy(alone.of(prompt)), rtol=1e-4, atol=1e-5)


def test_a_decoder_that_waits_for_the_device_runs_kernel_by_kernel(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a recording fails in CUDA itself, and the steps behind it must find everything as it was."""
    base = load_base(str(world.folder), dtype="fp32", device=GPU, cache=tmp_path)
    engine = Engine(base, world.chat, with_graphs(), Recorder())
    decoder = engine._runner._decoder
    launched = decoder.forward

    def waiting(*arguments: Any) -> Any:
        logits = launched(*arguments)
        assert float(logits.all_WV.float().sum()) < float("inf")
        return logits

    monkeypatch.setattr(decoder, "forward", waiting)
    engine.start()
    try:
        for name in (None, *ADAPTERS):
            prompt, expert = prompt_of(world, 1), world.experts[name] if name else None
            assert asyncio.run(answer(engine, prompt, expert)) == asyncio.run(answer(world.engine, prompt, expert))
    finally:
        engine.stop()
    assert engine._runner._graphs is not None
    assert not engine._runner._graphs._recordable
