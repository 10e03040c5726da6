"""A plain expert asked through its gate: what the gate says, what the expert answers, and what that costs."""

import asyncio
from pathlib import Path

import pytest
import torch

from expert_store import Catalog, Expert, ExpertVersion
from server.engine import Branches, Engine, Sampling
from server.model.base import load_base
from server.model.chat import Prompt
from server.routing import ChainRouter, Decision
from server.routing import score as score_of
from tests.engine.conftest import Recorder, World, small_config
from tests.support import tiny

COUNT = 8
PAIRS = {"gated-a": ("plain8", "act4"), "gated-b": ("plain64", "act16")}


@pytest.fixture(scope="module")
def folders(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("gated")
    return {
        name: tiny.with_gate(root / name, world.adapters[plain], world.adapters[gate])
        for name, (plain, gate) in PAIRS.items()
    }


@pytest.fixture(scope="module")
def gated(world: World, folders: dict[str, Path]) -> dict[str, ExpertVersion]:
    return {name: tiny.publish(world.store, world.base, folder, name) for name, folder in folders.items()}


def prompt_of(world: World, text: str = "the quick brown fox " * 12) -> Prompt:
    return world.chat.render([{"role": "user", "content": text}])


async def generated(engine: Engine, prompt: Prompt, expert: ExpertVersion) -> list[int]:
    sampling = Sampling(max_new_tokens=COUNT, ignore_eos=True)
    async with await engine.open(prompt, max_new_tokens=COUNT) as session:
        return [token.token async for token in session.generate(expert, sampling)]


async def routed(engine: Engine, prompt: Prompt, catalog: Catalog) -> tuple[Decision, list[int], int]:
    """The decision, the answer and the tokens computed, as the service goes about it."""
    router = ChainRouter()
    branches = router.branches(catalog)
    async with await engine.open(prompt, max_new_tokens=COUNT, branches=branches) as session:
        decision = await router.route(catalog, session)
        sampling = Sampling(max_new_tokens=COUNT, ignore_eos=True)
        tokens = [token.token async for token in session.generate(decision.expert, sampling)]
        return decision, tokens, session.computed_tokens


def chain_of(*versions: ExpertVersion) -> Catalog:
    experts = {v.name: Expert(v.name, {v.version: v}, {"live": v.version}) for v in versions}
    return Catalog(generation=1, experts=experts, chain=tuple(experts))


def with_threshold(version: ExpertVersion, threshold: float) -> ExpertVersion:
    manifest = version.manifest.model_copy(update={"threshold": threshold})
    return ExpertVersion(manifest, version.digest, version.folder)


def test_the_gates_score_is_pefts_and_the_answer_is_that_of_pefts_plain_lora(
    world: World, folders: dict[str, Path], gated: dict[str, ExpertVersion]
) -> None:
    prompt = prompt_of(world, "What is the capital of France?")
    for name, version in gated.items():
        decision, tokens, _ = asyncio.run(routed(world.engine, prompt, chain_of(with_threshold(version, 1e-9))))
        indicators = world.chat.indicator_tokens(version.manifest.indicators)  # type: ignore[arg-type]
        gate = tiny.oracle(world.folder, folders[name] / "gate", torch.float32).eval()
        with torch.no_grad():
            logits_V = gate(input_ids=torch.tensor([[*prompt.tokens, *indicators.shared]])).logits[0, -1]
        margin = float(logits_V[indicators.accept_token] - logits_V[indicators.reject_token])
        assert decision.score == pytest.approx(1 / (1 + torch.tensor(-margin).exp().item()), abs=1e-4)
        assert decision.expert is not None
        assert (decision.expert.name, decision.expert.digest) == (name, version.digest)
        plain = tiny.oracle(world.folder, folders[name], torch.float32)
        expected = tiny.oracle_tokens(plain, prompt.tokens, COUNT)
        assert tokens == expected
        assert asyncio.run(generated(world.engine, prompt, version)) == expected, "as when it is named"


def test_a_deleted_experts_gate_leaves_the_host_cache_with_it(world: World, gated: dict[str, ExpertVersion]) -> None:
    expert = with_threshold(gated["gated-a"], 0.0)
    assert expert.gate is not None
    catalog, host = chain_of(expert), world.engine.pool.host
    decision, *_ = asyncio.run(routed(world.engine, prompt_of(world), catalog))
    assert decision.expert == expert
    assert {expert.digest, expert.gate.digest} <= host.digests
    world.engine.forget(expert)
    asyncio.run(generated(world.engine, prompt_of(world), gated["gated-b"]))  # commands are taken in order
    assert host.digests.isdisjoint({expert.digest, expert.gate.digest})


def test_gates_cost_one_prefill_of_the_base_and_a_few_tokens_each(
    world: World, gated: dict[str, ExpertVersion]
) -> None:
    prompt = prompt_of(world)
    refusing = with_threshold(world.experts["act64"], 1 - 1e-12)
    winner = with_threshold(gated["gated-a"], 1e-9)
    catalog = chain_of(refusing, winner, gated["gated-b"])
    decision, _, computed = asyncio.run(routed(world.engine, prompt, catalog))
    assert [c.expert for c in decision.considered] == ["act64", "gated-a", "gated-b"]
    assert decision.expert == winner
    assert winner.manifest.indicators is not None
    tokens = world.chat.indicator_tokens(winner.manifest.indicators)
    suffix = len(prompt.tokens) - prompt.body_length + tokens.shared_length
    ahead = len(tokens.accept) - tokens.shared_length  # by the one that might have answered; gates do not
    answer = len(prompt.tokens) + COUNT - 1  # the last token is never run through the model
    assert computed == prompt.body_length + 3 * suffix + ahead + answer


def test_gates_and_activated_experts_are_asked_in_one_batch(world: World, gated: dict[str, ExpertVersion]) -> None:
    prompt = prompt_of(world)
    asked = [world.experts["act4"], *(version.asked_as for version in gated.values())]
    alone = []
    for expert in asked:
        alone += asyncio.run(scored(world.engine, prompt, [expert]))
    before = len(world.recorder.steps)
    together = asyncio.run(scored(world.engine, prompt, asked))
    assert together == pytest.approx(alone, abs=1e-4)
    assert together[0] == pytest.approx(together[1], abs=1e-4), "the same weights under two digests"
    assert max(step.experts for step in world.recorder.steps[before:]) == len(asked)


async def scored(engine: Engine, prompt: Prompt, experts: list[ExpertVersion]) -> list[float]:
    async with await engine.open(prompt, max_new_tokens=1, branches=Branches(len(experts), 0)) as session:
        return [score_of(logits) for logits in await session.score(experts)]


def test_a_gated_winner_whose_prompt_is_remembered_stays_within_its_reservation(
    world: World, gated: dict[str, ExpertVersion], tmp_path: Path
) -> None:
    """The base's blocks and the expert's own, both taken over from the prefix cache, must not be held at a time."""
    base = load_base(str(world.folder), dtype="fp32", device="cpu", cache=tmp_path)
    engine = Engine(base, world.chat, small_config(prefix_cache=True), Recorder())
    engine.start()
    catalog = chain_of(with_threshold(gated["gated-a"], 1e-9))
    prompt = prompt_of(world, "jumps over the lazy dog " * 40)
    try:
        runs = [asyncio.run(routed(engine, prompt, catalog)) for _ in range(3)]
    finally:
        engine.stop()
    engine.check_integrity()
    assert len({tuple(tokens) for _, tokens, _ in runs}) == 1
    assert runs[1][2] < runs[0][2]
