"""L2R's units: factors merged as PEFT merges them, gates as the server reads them, a router over the tasks' LoRAs."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraModel

from expert_store import Gates
from server.model.base import Base, load_base
from server.model.chat import ChatFormat
from server.model.gates import GateNetwork
from server.model.states import mean_states
from tests.support.tiny import oracle_tokens, write_adapter
from training.composed import Board, ComposedLinear, MergedLinear, compose
from training.errors import InvalidRun
from training.evaluate.adapters import TunedLora
from training.evaluate.budget import BUDGETS
from training.evaluate.l2r import LearnedGates, MergedAnswers, merged_texts, read_draft, read_gates
from training.evaluate.merging import load_adapters
from training.evaluate.stream import Sample
from training.evaluate.units import BaseSource, Workshop

PROMPTS = ["the quick brown fox", "what?", "the lazy dog jumps over the capital of France, again and again"]
BUDGET = replace(BUDGETS["small"], rank=2, epochs=1, batch_size=4)


def load(source: BaseSource) -> Base:
    return load_base(source.source, dtype="fp32", device="cpu", cache=source.cache)


def prompt_tokens(base: Base, text: str) -> list[int]:
    return list(ChatFormat(base.tokenizer).render([{"role": "user", "content": text}]).tokens)


@pytest.fixture
def adapters(base_source: BaseSource, tmp_path: Path) -> list[Path]:
    return [write_adapter(tmp_path / f"{seed}", Path(base_source.source), kind="lora", seed=seed) for seed in (1, 2, 3)]


def peft_s_linear(base: Base, adapters: Sequence[Path], weights: Sequence[float]) -> PeftModel:
    """PEFT takes the root of a weight for A and for B, so that a weight of g is asked for as g squared."""
    model = load_adapters(base.model, adapters)
    cast(LoraModel, model.base_model).add_weighted_adapter(
        list(model.peft_config), [weight**2 for weight in weights], "merged", combination_type="linear"
    )
    model.set_adapter("merged")
    return model.eval()


@torch.no_grad()
def test_merged_factors_are_peft_s_linear_combination(base_source: BaseSource, adapters: list[Path]) -> None:
    tokens = torch.tensor([prompt_tokens(load(base_source), PROMPTS[2])])
    weights = [0.2, 0.5, 0.3]
    wanted = peft_s_linear(load(base_source), adapters, weights)(tokens).logits
    logits = {}
    for linear in (MergedLinear, ComposedLinear):
        base, board = load(base_source), Board()
        compose(base.model, adapters, board, linear)
        num_layers = base.model.config.num_hidden_layers
        board.weight_NLE = torch.tensor(weights).expand(1, num_layers, 3)
        logits[linear] = base.model(tokens).logits
    torch.testing.assert_close(logits[MergedLinear], wanted, rtol=1e-4, atol=1e-4)
    assert (logits[ComposedLinear] - wanted).abs().max() > 0.01, "averaging outputs is another map"


@torch.no_grad()
def test_with_one_gate_open_merged_and_weighted_are_that_expert(base_source: BaseSource, adapters: list[Path]) -> None:
    base = load(base_source)
    tokens = torch.tensor([prompt_tokens(base, PROMPTS[0])]).expand(2, -1)
    wanted = [
        load_adapters(load(base_source).model, [adapters[expert]]).eval()(tokens[:1]).logits[0] for expert in (2, 0)
    ]
    for linear in (MergedLinear, ComposedLinear):
        base, board = load(base_source), Board()
        compose(base.model, adapters, board, linear)
        num_layers = base.model.config.num_hidden_layers
        board.weight_NLE = torch.tensor([[0.0, 0, 1], [1, 0, 0]])[:, None].expand(2, num_layers, 3)
        torch.testing.assert_close(base.model(tokens).logits, torch.stack(wanted), rtol=1e-4, atol=1e-4)


def test_factors_of_several_ranks_are_refused(base_source: BaseSource, adapters: list[Path], tmp_path: Path) -> None:
    wider = write_adapter(tmp_path / "wider", Path(base_source.source), kind="lora", seed=4, rank=3)
    with pytest.raises(InvalidRun, match="ranks"):
        compose(load(base_source).model, [adapters[0], wider], Board(), MergedLinear)


def test_merged_answers_are_those_of_each_prompt_s_own_merge(base_source: BaseSource, adapters: list[Path]) -> None:
    """Row by row through layers whose factors were averaged in the open, each layer by its own gates."""
    base = load(base_source)
    states_PLD = mean_states(base.model, [prompt_tokens(base, text) for text in PROMPTS]).numpy()
    num_layers, width = states_PLD.shape[1:]
    rng = np.random.default_rng(5)
    gates = GateNetwork(
        rng.normal(size=(num_layers, 3, width)).astype(np.float32), np.zeros((num_layers, 3), np.float32), "sigmoid"
    )
    found = merged_texts(load(base_source), adapters, gates, PROMPTS, max_new_tokens=6)
    for text, prompt, states_LD in zip(found, PROMPTS, states_PLD, strict=True):
        model = load_adapters(load(base_source).model, adapters).eval()
        average_in_place(model, gates.weights(states_LD))
        tokens = oracle_tokens(model, prompt_tokens(base, prompt), 6)
        stop = next((at for at, token in enumerate(tokens) if token in base.stop_tokens), 6)
        assert text == base.tokenizer.decode(tokens[:stop], skip_special_tokens=True)


def average_in_place(model: PeftModel, weight_LE: np.ndarray) -> None:
    """Makes part0 the average of all parts' factors, in each layer by that layer's weights."""
    for path, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        layer = int(path.partition(".layers.")[2].partition(".")[0])
        for factors in (module.lora_A, module.lora_B):
            parts = [factors[f"part{expert}"].weight.data for expert in range(3)]
            factors["part0"].weight.data = sum(
                float(weight) * part for weight, part in zip(weight_LE[layer], parts, strict=True)
            )


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_a_router_is_trained_over_the_tasks_loras_and_its_merge_answers(workshop: Workshop, kind: Gates) -> None:
    experts = tuple(
        TunedLora(word, tuple(Sample(f"{word}/{i}", word, f"the {word} {i}", word) for i in range(12)), BUDGET, seed=1)
        for word in ("jump", "lazy")
    )
    memory = tuple(sample for expert in experts for sample in expert.rows[:6])
    router = LearnedGates(experts, memory, kind, seed=1)
    asked = tuple(expert.rows[-1] for expert in experts)
    answers = MergedAnswers(router, asked, 4)
    with ThreadPoolExecutor(1) as executor:
        workshop.run([answers], executor, on_done=lambda _: None)
    folder = workshop.folder(router)
    draft = read_draft(folder)
    assert (draft.gates, len(draft.experts)) == (kind, 2)
    assert read_gates(folder).gates == kind
    assert not (folder / "store").exists()
    rows = [json.loads(line) for line in (folder / "memory.jsonl").read_text().splitlines()]
    assert [row["expert"] for row in rows] == ["expert-0"] * 6 + ["expert-1"] * 6
    texts = json.loads((workshop.folder(answers) / "answers.json").read_text())
    assert set(texts) == {sample.id for sample in asked}
    other = "softmax" if kind == "sigmoid" else "sigmoid"
    assert workshop.key(router) != workshop.key(LearnedGates(experts, memory, other, seed=1))
    assert workshop.key(router) != workshop.key(LearnedGates(experts, memory[1:], kind, seed=1))
