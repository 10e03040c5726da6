"""Several experts composed in every layer (L2R): token for token what PEFT's own modules give, outputs added openly."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from server.engine import Branches, Engine, OutputMixture, Sampling
from server.engine.answerer import Answerer
from server.model.base import load_base
from server.model.chat import ChatFormat, Prompt
from server.model.lora import layer_of
from server.model.states import mean_states
from tests.engine.conftest import Recorder, World, small_config
from tests.support import held_steps, tiny

COUNT = 12
PLAIN = ("plain8", "plain64", "plain12")
TEXTS = ("what is the capital of France?", "the quick brown fox", "jumps over the lazy dog " * 6)
LAYER_WEIGHTS = ((0.6, 0.3, 0.1), (0.0, 1.0, 0.0), (0.2, 0.3, 0.5))


def prompt_of(world: World, text: str) -> Prompt:
    return world.chat.render([{"role": "user", "content": text}])


def mixture_of(world: World, weights: Sequence[Sequence[float]] = LAYER_WEIGHTS) -> OutputMixture:
    experts = tuple(world.experts[name] for name in PLAIN)
    return OutputMixture(experts, tuple(tuple(row) for row in weights))


async def answer(engine: Engine, prompt: Prompt, answerer: Answerer, count: int = COUNT) -> list[int]:
    sampling = Sampling(max_new_tokens=count, ignore_eos=True)
    async with await engine.open(prompt, max_new_tokens=count, branches=Branches(plain=1)) as session:
        return [token.token async for token in session.generate(answerer, sampling)]


class AddedInTheOpen(nn.Module):
    """A base linear beside PEFT's own adapted ones: W x + sum of w_e (PEFT_e(x) - W x)."""

    def __init__(self, base: nn.Module, adapted: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.base, self.adapted, self.weights = base, nn.ModuleList(adapted), weights

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + sum(w * (module(x) - y) for w, module in zip(self.weights, self.adapted, strict=True))


def wavg_reference(world: World, weights: Sequence[Sequence[float]]) -> PreTrainedModel:
    """The outputs of separate PEFT models, averaged layer by layer."""
    model = AutoModelForCausalLM.from_pretrained(world.folder, dtype=torch.float32)
    experts = [tiny.oracle(world.folder, world.adapters[name], torch.float32) for name in PLAIN]
    assert all(isinstance(expert, PeftModel) for expert in experts)
    for path in world.base.spec.linears:
        parent = model.get_submodule(path.rpartition(".")[0])
        name = path.rpartition(".")[2]
        adapted = [expert.base_model.model.get_submodule(path) for expert in experts]
        layer = layer_of(path)
        assert layer is not None
        setattr(parent, name, AddedInTheOpen(parent.get_submodule(name), adapted, weights[layer]))
    return model


def merge_reference(world: World, weights: Sequence[Sequence[float]]) -> PreTrainedModel:
    """One dense model: W + sum of w_e * (what merging PEFT's adapter e adds to W)."""
    model = AutoModelForCausalLM.from_pretrained(world.folder, dtype=torch.float32)
    merged = [tiny.oracle(world.folder, world.adapters[name], torch.float32).merge_and_unload() for name in PLAIN]
    plain = {path: model.get_submodule(path).weight.detach().clone() for path in world.base.spec.linears}
    for path, weight in plain.items():
        layer = layer_of(path)
        assert layer is not None
        for share, expert in zip(weights[layer], merged, strict=True):
            model.get_submodule(path).weight.data += share * (expert.get_submodule(path).weight.data - weight)
    return model


@pytest.mark.parametrize("reference", [wavg_reference, merge_reference])
def test_a_mixture_alone_equals_the_slow_reference(world: World, reference: object) -> None:
    assert callable(reference)
    model = reference(world, LAYER_WEIGHTS)
    for text in TEXTS:
        prompt = prompt_of(world, text)
        tokens = [*prompt.tokens, *tiny.forced(world.chat, world.experts["plain8"])]
        expected = tiny.oracle_tokens(model, tokens, COUNT)
        assert asyncio.run(answer(world.engine, prompt, mixture_of(world))) == expected


def test_mixtures_in_a_mixed_batch_equal_themselves_alone(world: World) -> None:
    even, first = ((1 / 3,) * 3,) * 3, ((1.0, 0.0, 0.0),) * 3
    who: list[Answerer] = [
        mixture_of(world),
        world.experts["act4"],
        mixture_of(world, even),
        None,
        world.experts["plain8"],
        mixture_of(world, first),
        world.experts["plain64"],
        mixture_of(world),
    ]
    prompts = [prompt_of(world, TEXTS[index % len(TEXTS)]) for index in range(len(who))]
    alone = [asyncio.run(answer(world.engine, p, a)) for p, a in zip(prompts, who, strict=True)]

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(answer(world.engine, p, a) for p, a in zip(prompts, who, strict=True)))

    assert asyncio.run(together()) == alone
    assert len({tuple(tokens) for tokens in alone}) > 4, "they are told apart"


def test_an_expert_of_weight_one_answers_as_it_does_alone(world: World) -> None:
    one = OutputMixture((world.experts["plain8"],), ((1.0,),) * 3)
    for text in TEXTS:
        prompt = prompt_of(world, text)
        named = asyncio.run(answer(world.engine, prompt, world.experts["plain8"]))
        assert asyncio.run(answer(world.engine, prompt, one)) == named


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_states_of_a_prompt_are_those_of_transformers(
    family: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp(family)
    folder = tiny.write_base(root / "base", family)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base = load_base(str(folder), dtype="fp32", device="cpu", cache=root / "cache")
    chat = ChatFormat(base.tokenizer)
    prompts = [chat.render([{"role": "user", "content": text}]) for text in TEXTS]
    expected = mean_states(reference, [prompt.tokens for prompt in prompts])
    engine = Engine(base, chat, small_config(step_tokens=24), Recorder())
    engine.start()

    async def states(prompt: Prompt) -> Tensor:
        async with await engine.open(prompt, max_new_tokens=1, branches=Branches(plain=1)) as session:
            return torch.from_numpy(await session.prompt_states())

    async def all_states() -> list[Tensor]:
        return await asyncio.gather(*(states(prompt) for prompt in prompts))

    try:
        for actual, wanted in zip(asyncio.run(all_states()), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)
    finally:
        engine.stop()
    engine.check_integrity()


def test_what_a_mixture_has_cached_is_no_other_mixtures(base_folder: Path, world: World) -> None:
    base = load_base(str(base_folder), dtype="fp32", device="cpu", cache=world.store.root.parent / "cache")
    recorder = Recorder()
    engine = Engine(base, world.chat, replace(small_config(), prefix_cache=True), recorder)
    engine.start()
    prompt = prompt_of(world, TEXTS[2])
    even = ((1 / 3,) * 3,) * 3
    try:
        others: list[Answerer] = [mixture_of(world, even), world.experts["plain8"], None]
        for who, repeated in [(mixture_of(world), False), (mixture_of(world), True), *((w, False) for w in others)]:
            before = sum(step.reused for step in recorder.steps)
            cached = asyncio.run(answer(engine, prompt, who))
            reused = sum(step.reused for step in recorder.steps) - before
            assert cached == asyncio.run(answer(world.engine, prompt, who))
            assert (reused > 0) == repeated
    finally:
        engine.stop()
    engine.check_integrity()


def test_a_step_counts_every_expert_of_a_mixture_once(base_folder: Path, world: World) -> None:
    base = load_base(str(base_folder), dtype="fp32", device="cpu", cache=world.store.root.parent / "cache")
    recorder = Recorder()
    engine = Engine(base, world.chat, small_config(), recorder)
    engine.start()

    prompt = prompt_of(world, TEXTS[0])
    who: list[Answerer] = [mixture_of(world), world.experts[PLAIN[0]], world.experts["act4"], None]

    async def together() -> None:
        await asyncio.gather(*(answer(engine, prompt, one) for one in who))

    try:
        for one in who:
            asyncio.run(answer(engine, prompt, one))  # has read the experts' files
        with held_steps.together(engine, len(who)):
            asyncio.run(together())
    finally:
        engine.stop()
    assert max(step.experts for step in recorder.steps) == len(PLAIN) + 1


def test_mixtures_give_back_what_they_held_when_cancelled(world: World) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(answer(world.engine, prompt_of(world, TEXTS[0]), mixture_of(world), count=200))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await answer(world.engine, prompt_of(world, TEXTS[0]), None, count=2)

    asyncio.run(cancelled())
    assert world.engine.pool.pinned_refs() == []


@pytest.mark.parametrize("with_kernels", [False, True])
def test_bf16_blends_and_states_are_those_of_single_experts_and_of_transformers(
    world: World, tmp_path: Path, with_kernels: bool, request: pytest.FixtureRequest
) -> None:
    base = load_base(str(world.folder), dtype="bf16", device="cpu", cache=tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(world.folder, dtype=torch.bfloat16)
    config = replace(small_config(), kernels=request.getfixturevalue("kernels") if with_kernels else None)
    engine = Engine(base, world.chat, config, Recorder())
    engine.start()
    prompt = prompt_of(world, TEXTS[2])

    async def states() -> Tensor:
        async with await engine.open(prompt, max_new_tokens=1, branches=Branches(plain=1)) as session:
            return torch.from_numpy(await session.prompt_states())

    try:
        expert = world.experts["plain8"]
        one = OutputMixture((expert,), ((1.0,),) * 3)
        halves = OutputMixture((expert, world.experts["plain64"]), ((1.0, 0.0),) * 3)
        named = asyncio.run(answer(engine, prompt, expert))
        assert asyncio.run(answer(engine, prompt, one)) == named
        assert asyncio.run(answer(engine, prompt, halves)) == named, "an expert of weight 0 adds nothing"
        wanted = mean_states(reference, [prompt.tokens])[0]
        error_L = (asyncio.run(states()) - wanted).square().mean(dim=1).sqrt() / wanted.std(dim=1)
        assert float(error_L.max()) < 0.06
    finally:
        engine.stop()
