"""A request's tokens are the same alone, in any mixed batch, after a probe, and in PEFT."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from expert_store import ExpertStore, ExpertVersion, Indicators
from server.engine import Branches, Engine, Sampling
from server.engine.runner import Runner
from server.errors import BaseModelError
from server.model.base import DtypeName, load_base
from server.model.chat import ChatFormat, Prompt
from tests.engine.conftest import ADAPTERS, Recorder, World, small_config
from tests.support import held_steps, tiny

PROMPTS = ["What is the capital of France?", "the quick brown fox " * 12, "0123", "Jumps over the lazy dog, " * 5]
COUNT = 12


def prompt_of(world: World, index: int) -> Prompt:
    return world.chat.render([{"role": "user", "content": PROMPTS[index % len(PROMPTS)]}])


async def answer(engine: Engine, prompt: Prompt, expert: ExpertVersion | None, count: int = COUNT) -> list[int]:
    sampling = Sampling(max_new_tokens=count, ignore_eos=True)
    async with await engine.open(prompt, max_new_tokens=count) as session:
        return [token.token async for token in session.generate(expert, sampling)]


@pytest.mark.parametrize("name", [None, *ADAPTERS])
def test_greedy_tokens_equal_peft_in_fp32(world: World, name: str | None) -> None:
    expert = world.experts[name] if name else None
    model = tiny.oracle(world.folder, world.adapters[name] if name else None, torch.float32)
    for index in range(len(PROMPTS)):
        prompt = prompt_of(world, index)
        expected = tiny.oracle_tokens(model, [*prompt.tokens, *tiny.forced(world.chat, expert)], COUNT)
        # Stop tokens are masked on both sides: min_new_tokens there, ignore_eos here.
        assert asyncio.run(answer(world.engine, prompt, expert)) == expected


def test_adapters_change_the_answer(world: World) -> None:
    """Guards the parity tests against adapters too weak to tell apart."""
    prompt = prompt_of(world, 0)
    answers = {name: asyncio.run(answer(world.engine, prompt, world.experts[name])) for name in ADAPTERS}
    assert len({tuple(tokens) for tokens in answers.values()}) == len(ADAPTERS)


@pytest.mark.parametrize("shape", ["distinct", "identical", "skewed", "all_twice"])
def test_mixed_batch_gives_the_same_tokens_as_alone(world: World, shape: str) -> None:
    names: list[str | None] = {
        "distinct": [None, *ADAPTERS],
        "identical": ["act4"] * 8,
        "skewed": ["plain8"] * 6 + [None, "act64"],
        "all_twice": [*ADAPTERS, None, None, *reversed(ADAPTERS)],
    }[shape]
    requests = [(prompt_of(world, i), world.experts[n] if n else None) for i, n in enumerate(names)]
    alone = [asyncio.run(answer(world.engine, *request, 2 * COUNT)) for request in requests]
    steps_before = len(world.recorder.steps)

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(answer(world.engine, *request, 2 * COUNT) for request in requests))

    with held_steps.together(world.engine, len(requests)):
        assert asyncio.run(together()) == alone
    assert max(step.sequences for step in world.recorder.steps[steps_before:]) == len(names)


def test_probed_expert_answers_as_when_named(world: World) -> None:
    prompt = prompt_of(world, 1)
    asked = [world.experts[name] for name in ("act4", "act16", "plain8", "late8", "act64", "plain64")]

    async def probed(winner: ExpertVersion | None) -> list[int]:
        branches = Branches(activated=4, plain=2)
        async with await world.engine.open(prompt, max_new_tokens=COUNT, branches=branches) as session:
            await session.score(asked)
            session.drop([e for e in asked if winner is None or e.digest != winner.digest])
            tokens = session.generate(winner, Sampling(max_new_tokens=COUNT, ignore_eos=True))
            return [token.token async for token in tokens]

    for winner in [*asked, None]:
        assert asyncio.run(probed(winner)) == asyncio.run(answer(world.engine, prompt, winner))


def test_indicator_logits_equal_peft(world: World) -> None:
    prompt = prompt_of(world, 3)
    for name, expert in world.experts.items():

        async def scored(expert: ExpertVersion = expert) -> tuple[float, float]:
            async with await world.engine.open(prompt, max_new_tokens=1, branches=Branches(1, 1)) as session:
                (logits,) = await session.score([expert])
                return logits.accept, logits.reject

        assert expert.manifest.indicators is not None
        indicators = world.chat.indicator_tokens(expert.manifest.indicators)
        model = tiny.oracle(world.folder, world.adapters[name], torch.float32).eval()
        with torch.no_grad():
            logits_V = model(input_ids=torch.tensor([[*prompt.tokens, *indicators.shared]])).logits[0, -1]
        expected = logits_V[[indicators.accept_token, indicators.reject_token]].tolist()
        assert asyncio.run(scored()) == pytest.approx(tuple(expected), abs=1e-4)


async def probed_tokens(engine: Engine, prompt: Prompt, asked: list[ExpertVersion], count: int) -> int:
    """Tokens computed for asking these experts and for so many tokens of the first one's answer."""
    branches = Branches(activated=len(asked))
    async with await engine.open(prompt, max_new_tokens=max(1, count), branches=branches) as session:
        await session.score(asked)
        if count:
            async for _ in session.generate(asked[0], Sampling(max_new_tokens=count, ignore_eos=True)):
                pass
        return session.computed_tokens


@contextmanager
def own_engine(world: World, cache: Path, recorder: Recorder | None = None, **config: int) -> Iterator[Engine]:
    """An engine in which nobody has been chosen yet."""
    base = load_base(str(world.folder), dtype="fp32", device="cpu", cache=cache)
    engine = Engine(base, world.chat, replace(small_config(), **config), recorder or Recorder())
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def test_computed_tokens_show_one_prefill_for_all_activated_experts(world: World, tmp_path: Path) -> None:
    prompt = prompt_of(world, 1)
    asked = [world.experts[name] for name in ("act4", "act16", "act64")]
    suffix = len(prompt.tokens) - prompt.body_length + len(tiny.forced(world.chat, asked[0]))
    answer_tokens = COUNT - 1  # the first came with its probe, and the last token is never run through the model
    with own_engine(world, tmp_path) as engine:
        computed = asyncio.run(probed_tokens(engine, prompt, asked, COUNT))
    assert computed == prompt.body_length + len(asked) * suffix + answer_tokens


def test_of_many_experts_only_those_lately_chosen_compute_ahead_and_all_answer_the_same(
    world: World, tmp_path: Path
) -> None:
    prompt = prompt_of(world, 1)
    asked = [world.experts[name] for name in ("act4", "act16", "late8")]
    shared = len(world.chat.indicator_tokens(Indicators()).shared)
    accept = len(tiny.forced(world.chat, asked[0]))
    generation_prompt = len(prompt.tokens) - prompt.body_length

    async def ahead(engine: Engine) -> list[bool]:
        async with await engine.open(prompt, max_new_tokens=1, branches=Branches(activated=3)) as session:
            await session.score(asked)
            return [session._state.asked[expert.digest].logits_V is not None for expert in asked]

    async def chosen(engine: Engine) -> list[int]:
        async with await engine.open(prompt, max_new_tokens=COUNT, branches=Branches(activated=3)) as session:
            await session.score(asked)
            tokens = session.generate(asked[1], Sampling(max_new_tokens=COUNT, ignore_eos=True))
            return [token.token async for token in tokens]

    with own_engine(world, tmp_path, answer_ahead=2) as engine:
        assert asyncio.run(ahead(engine)) == [False, False, False]
        computed = asyncio.run(probed_tokens(engine, prompt, asked, COUNT))
        assert asyncio.run(ahead(engine)) == [True, False, False]
        assert computed == len(prompt.tokens) + 2 * generation_prompt + 3 * shared + (accept - shared) + COUNT - 1
        assert asyncio.run(chosen(engine)) == asyncio.run(answer(world.engine, prompt, asked[1]))


@pytest.mark.parametrize("step_tokens", [17, 22, 34, 35])
def test_nothing_of_a_probe_is_left_to_compute_once_its_pins_are_given_back(
    world: World, step_tokens: int, tmp_path: Path
) -> None:
    """Its slots may be another expert's by then."""

    async def pending(engine: Engine) -> list[int]:
        asked = [world.experts[name] for name in ("act4", "act16", "late8")]
        branches = Branches(activated=3)
        async with await engine.open(prompt_of(world, 0), max_new_tokens=1, branches=branches) as session:
            await session.score(asked)
            return [lane.sequence.num_pending for lane in session._state.lanes()]

    with own_engine(world, tmp_path, step_tokens=step_tokens) as engine:
        assert set(asyncio.run(pending(engine))) == {0}


def test_experts_woken_by_the_indicator_cost_its_tokens_alone(world: World, tmp_path: Path) -> None:
    prompt, expert = prompt_of(world, 1), world.experts["late8"]
    with own_engine(world, tmp_path) as engine:
        computed = asyncio.run(probed_tokens(engine, prompt, [expert], 0))
    assert computed == len(prompt.tokens) + len(tiny.forced(world.chat, expert))


def test_an_answer_begins_with_the_step_that_chose_it(world: World, tmp_path: Path) -> None:
    """One step for the prompt, the probes and the first token; the other tokens take one each."""
    prompt, recorder = world.chat.render([{"role": "user", "content": "xyz"}]), Recorder()
    asked = [world.experts["act16"], world.experts["late8"]]
    with own_engine(world, tmp_path, recorder) as engine:
        asyncio.run(probed_tokens(engine, prompt_of(world, 0), asked, 0))  # has read both experts' files
        before = len(recorder.steps)
        asyncio.run(probed_tokens(engine, prompt, asked, 3))
    assert len(recorder.steps) - before == 3


def test_a_short_prompt_and_all_its_probes_are_one_step(world: World) -> None:
    prompt = world.chat.render([{"role": "user", "content": "abc"}])
    asked = [world.experts[name] for name in ("act4", "act16", "act64")]
    asyncio.run(probed_tokens(world.engine, prompt_of(world, 0), asked, 0))  # has read the experts' files
    before = len(world.recorder.steps)

    async def probe() -> None:
        async with await world.engine.open(prompt, max_new_tokens=1, branches=Branches(activated=3)) as session:
            await session.score(asked)

    asyncio.run(probe())
    (step,) = world.recorder.steps[before:]
    assert step.experts == 3
    assert step.sequences == 4


@pytest.mark.parametrize(("dtype", "with_kernels"), [("bf16", False), ("bf16", True), ("int8", True)])
def test_rounded_logits_stay_within_tolerance_of_peft(
    world: World, tmp_path: Path, dtype: DtypeName, with_kernels: bool, request: pytest.FixtureRequest
) -> None:
    """Root mean square difference below 0.06 of the logits' spread: bf16 rounds each of the layers' sums to 8 bits.

    So does int8, whose base has been rounded for PEFT as well: no expert was.
    """
    kernels = request.getfixturevalue("kernels") if with_kernels else None
    base = load_base(str(world.folder), dtype=dtype, device="cpu", cache=tmp_path, kernels=kernels)
    config = replace(small_config(), kernels=kernels)
    engine = Engine(base, ChatFormat(base.tokenizer), config, Recorder())
    engine.start()
    rendered, shared = prompt_of(world, 1), world.chat.indicator_tokens(Indicators()).shared
    prompt = Prompt(tokens=(*rendered.tokens, *shared), body_length=rendered.body_length)  # wakes up everybody

    async def logits(expert: ExpertVersion) -> tuple[torch.Tensor, torch.Tensor]:
        async with await engine.open(prompt, max_new_tokens=1, branches=Branches(plain=2)) as session:
            return await session.logits(expert)

    try:
        for name, expert in world.experts.items():
            for adapter, actual in zip((None, world.adapters[name]), asyncio.run(logits(expert)), strict=True):
                model = tiny.oracle(world.folder, adapter, torch.bfloat16).eval()
                if dtype == "int8":
                    tiny.round_linears(model)
                with torch.no_grad():
                    expected = model(input_ids=torch.tensor([list(prompt.tokens)])).logits[0, -1].float()
                error = (actual - expected).square().mean().sqrt() / expected.std()
                assert error < 0.06, (name, adapter, float(error))
    finally:
        engine.stop()


@pytest.mark.parametrize("family", [name for name in tiny.FAMILIES if name != "llama"])
def test_other_families_compute_what_transformers_computes(family: str, tmp_path: Path) -> None:
    folder = tiny.write_base(tmp_path / family, family)
    base = load_base(str(folder), dtype="fp32", device="cpu", cache=tmp_path)
    chat = ChatFormat(base.tokenizer)
    kind: Literal["lora", "alora"] = "lora" if family == "opt" else "alora"  # of which PEFT wants a batch dimension
    adapter = tiny.write_adapter(tmp_path / "adapter", folder, kind=kind, invocation=chat.generation_prompt)
    expert = tiny.publish(ExpertStore.open(tmp_path / "store"), base, adapter, "expert", indicators=False)
    engine = Engine(base, chat, small_config(), Recorder())
    engine.start()
    try:
        for text in PROMPTS:
            prompt = chat.render([{"role": "user", "content": text}])
            for named, path in ((None, None), (expert, adapter)):
                model = tiny.oracle(folder, path, torch.float32)
                assert asyncio.run(answer(engine, prompt, named)) == tiny.oracle_tokens(model, prompt.tokens, COUNT)
    finally:
        engine.stop()


def test_a_model_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    base = load_base(str(tiny.write_base(tmp_path, "gemma2")), dtype="fp32", device="cpu", cache=tmp_path)

    def disturb(_: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> tuple[object, object]:
        changed = kwargs["hidden_states"] * 2 if "attention_plan" in kwargs else kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": changed}

    base.model.model.layers[1].self_attn.register_forward_pre_hook(disturb, with_kwargs=True)

    with pytest.raises(BaseModelError, match="does not give the same logits"):
        Runner(base, kv_memory_bytes=1 << 22, block_tokens=16, num_slots=1, slot_rank=8)
