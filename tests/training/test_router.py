"""The router recipe on two experts that a tiny base cannot tell apart by itself, and its router on the engine."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from expert_store import ROUTER_FILE, ExpertStore, RouterDraft
from server.engine import Engine, OutputMixture, Sampling
from server.model.chat import ChatFormat
from server.model.gates import GateNetwork, read_network
from server.model.states import mean_states
from server.routing import Decision, LearnedRouter, SlotRoom
from tests.engine.conftest import Recorder, small_config
from tests.support.routed import ANSWERS, PROMPTS, Routed, make_routed, write_memory
from tests.support.tiny import publish, write_adapter
from training import batches
from training.commands import app
from training.errors import Diverged, InvalidData, InvalidRun
from training.gate_network import TrainedGates
from training.router import RouterOptions, TrainedRouter, choose_experts, read_router_data, train_router

OPTIONS = RouterOptions(epochs=4, batch_size=4, learning_rate=5e-3, holdout=0.25)


class Watcher:
    """Keeps the losses; raises `error` at one step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.losses: list[float] = []
        self.stop_at = stop_at

    def begin(self, *, done: int, total: int) -> None: ...

    def step(self, *, loss: float, tokens: int) -> None:  # noqa: ARG002
        self.losses.append(loss)
        if len(self.losses) == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Routed:
    return make_routed(tmp_path_factory.mktemp("routed"))


def train(routed: Routed, out: Path, options: RouterOptions = OPTIONS, **more: object) -> TrainedRouter:
    data = read_router_data(routed.experts, routed.memory, None)
    given = {"resume": False, "observer": Watcher(), **more}
    return train_router(routed.base(out / "cache"), data, options, out=out, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(routed: Routed, tmp_path_factory: pytest.TempPathFactory) -> TrainedRouter:
    return train(routed, tmp_path_factory.mktemp("trained") / "out")


def network_of(trained: TrainedRouter) -> GateNetwork:
    draft = trained.draft
    shape = (draft.num_layers, len(draft.experts), draft.width)
    return read_network(trained.folder / ROUTER_FILE, gates=draft.gates, shape=shape)


@pytest.mark.parametrize("gates", ["sigmoid", "softmax"])
def test_a_router_finds_the_right_expert_and_beats_the_even_mixture(routed: Routed, tmp_path: Path, gates: str) -> None:
    watcher = Watcher()
    options = RouterOptions(**{**vars(OPTIONS), "gates": gates})
    quality = train(routed, tmp_path / "out", options, observer=watcher).draft.quality
    assert np.mean(watcher.losses[-4:]) < 0.5 * np.mean(watcher.losses[:2])
    assert quality["leader_accuracy"] == 1
    assert quality["loss"] < 0.5 * quality["loss_uniform"]
    assert quality["loss_oracle"] < quality["loss_uniform"], "the experts have learned their tasks"


def test_the_manifest_says_where_the_router_comes_from(routed: Routed, trained: TrainedRouter) -> None:
    draft = RouterDraft.model_validate_json((trained.folder / "manifest.json").read_text())
    assert draft == trained.draft
    assert [(e.name, e.version, e.digest) for e in draft.experts] == [(e.name, 1, e.digest) for e in routed.experts]
    assert (draft.num_layers, draft.width, draft.gates) == (3, 64, "sigmoid")
    assert draft.training is not None
    assert (draft.training.recipe, draft.training.rows) == ("router", 18)
    assert sorted(path.name for path in trained.folder.iterdir() if path.is_file()) == ["manifest.json", ROUTER_FILE]


def test_the_same_seed_gives_the_same_router_and_so_does_a_resumed_run(
    routed: Routed, trained: TrainedRouter, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(routed, tmp_path / "out", observer=Watcher(stop_at=13))
    with pytest.raises(InvalidRun, match="--resume"):
        train(routed, tmp_path / "out")
    train(routed, tmp_path / "out", resume=True)
    assert (tmp_path / "out" / ROUTER_FILE).read_bytes() == (trained.folder / ROUTER_FILE).read_bytes()


def test_a_step_in_parts_is_the_step_as_a_whole(
    routed: Routed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Softmax gates, which draw no noise; long rows would not fit into memory together."""
    options = RouterOptions(**{**vars(OPTIONS), "gates": "softmax", "epochs": 1})
    whole, parted = Watcher(), Watcher()
    expected = train(routed, tmp_path / "whole", options, observer=whole)
    monkeypatch.setattr(batches, "_PART_TOKENS", 50)
    assert len(batches.in_parts(4, widest=30)) == 4
    found = train(routed, tmp_path / "parted", options, observer=parted)
    np.testing.assert_allclose(parted.losses, whole.losses, rtol=1e-3)
    np.testing.assert_allclose(network_of(found).weight_LED, network_of(expected).weight_LED, atol=1e-3)
    for key, value in expected.draft.quality.items():
        assert found.draft.quality[key] == pytest.approx(value, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run(routed: Routed, tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        train(routed, tmp_path / "out", RouterOptions(**{**vars(OPTIONS), "learning_rate": 1e38, "epochs": 8}))


def test_what_is_folded_is_what_was_trained() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(9, 3, 8, generator=generator) * 5 + 2
    for gates in ("sigmoid", "softmax"):
        network = TrainedGates(4, states, gates)  # type: ignore[arg-type]
        torch.nn.init.normal_(network.weight_LED, generator=generator)
        torch.nn.init.normal_(network.bias_LE, generator=generator)
        expected = network(states, None).detach().numpy()
        for prompt, wanted in zip(states, expected, strict=True):
            np.testing.assert_allclose(network.folded().weights(prompt.numpy()), wanted, atol=1e-5)


async def routed_answer(
    engine: Engine, chat: ChatFormat, router: LearnedRouter, store: ExpertStore, text: str
) -> tuple[Decision, str]:
    prompt = chat.render([{"role": "user", "content": text}])
    plan = router.plan(store.catalog)
    async with await engine.open(prompt, max_new_tokens=8, branches=plan.branches(None)) as session:
        decision = await plan.route(prompt, session, None)
        sampling = Sampling(max_new_tokens=8)
        tokens = [t.token async for t in session.generate(decision.answerer, sampling) if t.finish_reason != "stop"]
    return decision, str(chat._tokenizer.decode(tokens))


def test_the_published_router_answers_on_the_engine_and_a_new_expert_changes_nothing(
    routed: Routed, trained: TrainedRouter, tmp_path: Path
) -> None:
    store = ExpertStore.open(routed.store_folder)
    with store.stage() as staged:
        (staged.folder / ROUTER_FILE).write_bytes((trained.folder / ROUTER_FILE).read_bytes())
        store.publish_router(staged, trained.draft)
    base, reference = routed.base(tmp_path), routed.base(tmp_path)
    chat = ChatFormat(base.tokenizer)
    router = LearnedRouter(store, base_fingerprint=base.spec.fingerprint, room=SlotRoom(64, 8))
    engine = Engine(base, chat, small_config(), Recorder())
    engine.start()
    texts = [PROMPTS[name].format(number) for number in (20, 21) for name in sorted(ANSWERS)]

    async def ask_all() -> list[tuple[Decision, str]]:
        return await asyncio.gather(*(routed_answer(engine, chat, router, store, text) for text in texts))

    async def ask_in_turn() -> list[Decision]:
        """Each alone in its batch, so that the same question gets the same numbers to the last bit."""
        return [(await routed_answer(engine, chat, router, store, text))[0] for text in texts]

    try:
        before, in_turn = asyncio.run(ask_all()), asyncio.run(ask_in_turn())
        tokens = [chat.render([{"role": "user", "content": text}]).tokens for text in texts]
        states = mean_states(reference.model, tokens).numpy()
        for (decision, answer), name, states_LD in zip(before, sorted(ANSWERS) * 2, states, strict=True):
            assert answer == ANSWERS[name]
            assert decision.leader is not None
            assert decision.leader.name == name
            assert isinstance(decision.answerer, OutputMixture)
            served = np.array(decision.answerer.layer_weights)
            np.testing.assert_allclose(served, network_of(trained).weights(states_LD), atol=1e-3)
        adapter = write_adapter(tmp_path / "late", routed.base_folder, kind="lora", seed=9)
        publish(store, reference, adapter, "late", indicators=False)
        after = asyncio.run(ask_all())
        assert [answer for _, answer in after] == [answer for _, answer in before]
        assert [d.answerer for d in asyncio.run(ask_in_turn())] == [d.answerer for d in in_turn], "its gate is closed"
    finally:
        engine.stop()
    engine.check_integrity()


def test_bad_rows_are_named_by_their_line(routed: Routed, tmp_path: Path) -> None:
    rows = [
        {"id": 1, "expert": "dogs", "input": "a", "output": "b"},
        {"id": 2, "input": "a", "output": "b"},
        {"id": 3, "task": "cats", "input": "a", "output": "b"},
    ]
    path = tmp_path / "memory.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(InvalidData) as refused:
        read_router_data(routed.experts, path, None)
    assert [line for line, _ in refused.value.problems] == [2, 3]
    assert "dogs, foxes" in refused.value.message
    path.write_text(json.dumps(rows[0]))
    with pytest.raises(InvalidRun, match="foxes"):
        read_router_data(routed.experts, path, None)


def test_an_expert_whose_only_row_is_held_out_is_named(routed: Routed, tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    rows = [{"id": name, "expert": name, "input": name, "output": "b"} for name in ("dogs", "foxes")]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    alone = replace(routed, memory=path)
    with pytest.raises(InvalidRun, match=r"all rows of (dogs|foxes) were held out: .*--eval-memory"):
        train(alone, tmp_path / "out")


def test_held_out_rows_are_not_those_of_the_memory(routed: Routed, tmp_path: Path) -> None:
    write_memory(tmp_path / "held-out.jsonl", range(11, 13))
    with pytest.raises(InvalidData, match=r"held-out\.jsonl.*\n  line 1: the same input is trained on in .* line 23"):
        read_router_data(routed.experts, routed.memory, tmp_path / "held-out.jsonl")


def relay(routed: Routed, out: Path, *options: str) -> Result:
    command = ["router", "--memory", routed.memory, "--store", routed.store_folder, "--out", out]
    more = ["--base", routed.base_folder, "--device", "cpu", "--cache", out.parent / "cache", *options]
    return CliRunner().invoke(app, [str(part) for part in (*command, *more)])


def test_the_command_trains_and_registers(routed: Routed, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.jsonl"
    write_memory(held_out, range(30, 33))
    store = ExpertStore.open(routed.store_folder)
    before = store.read_router()
    options = ("--expert", "dogs", "--expert", "foxes@1", "--epochs", "1", "--eval-memory", str(held_out), "--register")
    result = relay(routed, tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    published = store.read_router()
    assert published is not None
    assert published.version == (before.version if before else 0) + 1
    assert f"registered as version {published.version}" in result.output
    assert published.manifest.quality["held_out"] == 6
    assert store.verify() == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--expert", "dogs"), "between two plain LoRAs"),
        (("--expert", "nobody"), "there is no expert 'nobody'"),
        (("--store", "/no/such/store"), "is not there"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_way_out(
    routed: Routed, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    result = relay(routed, tmp_path / "out", *options)
    assert result.exit_code == 1
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_activated_experts_cannot_be_composed(routed: Routed, tmp_path: Path) -> None:
    base = routed.base(tmp_path)
    store = ExpertStore.open(tmp_path / "store")
    invocation = ChatFormat(base.tokenizer).generation_prompt
    adapter = write_adapter(tmp_path / "awake", routed.base_folder, kind="alora", invocation=invocation)
    publish(store, base, adapter, "awake")
    with pytest.raises(InvalidRun, match="awake@1"):
        choose_experts(store.catalog, ["awake"])
