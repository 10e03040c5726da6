"""Features, picks and Arrow against the obvious loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import ArrowConfig, create_arrow_model
from transformers import AutoModelForCausalLM

from server.model.base import Base, load_base
from server.model.chat import ChatFormat
from tests.support.tiny import oracle_tokens, write_adapter
from training.evaluate.routers import greedy_texts, mean_hidden_states, pick
from training.evaluate.units import BaseSource

PROMPTS = ["the quick brown fox", "what?", "the lazy dog jumps over the capital of France, again and again"]


def load(source: BaseSource) -> Base:
    return load_base(source.source, dtype="fp32", device="cpu", cache=source.cache)


def prompt_tokens(base: Base, text: str) -> list[int]:
    return list(ChatFormat(base.tokenizer).render([{"role": "user", "content": text}]).tokens)


def test_a_feature_is_the_mean_of_the_prompts_own_hidden_states(base_source: BaseSource) -> None:
    base = load(base_source)
    found = mean_hidden_states(base, PROMPTS)
    model = AutoModelForCausalLM.from_pretrained(base_source.source, dtype=torch.float32)
    for row, text in zip(found, PROMPTS, strict=True):
        output = model(input_ids=torch.tensor([prompt_tokens(base, text)]), output_hidden_states=True)
        wanted = output.hidden_states[-1][0].mean(dim=0).detach()
        torch.testing.assert_close(torch.from_numpy(row), wanted, rtol=1e-4, atol=1e-4)


def test_a_centroid_is_the_nearest_mean_in_units_of_the_spread() -> None:
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 100.0])
    train = [(rng.normal(size=(30, 2)) + place) * spread for place in ([0, 0], [6, 0], [0, 6])]
    asked = np.concatenate(train)
    scaled = (asked - asked.mean(axis=0)) / asked.std(axis=0)
    means = np.stack([scaled[start : start + 30].mean(axis=0) for start in (0, 30, 60)])
    wanted = ((scaled[:, None] - means[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert pick("centroid", train, asked) == wanted.tolist()


@pytest.mark.parametrize("by", ["centroid", "classifier"])
def test_tasks_far_apart_are_told_apart_and_a_single_one_gets_everything(by: str) -> None:
    rng = np.random.default_rng(1)
    train = [rng.normal(size=(20, 4)) + 5 * number for number in range(3)]
    asked = np.concatenate([rng.normal(size=(4, 4)) + 5 * number for number in range(3)])
    assert pick(by, train, asked) == [0] * 4 + [1] * 4 + [2] * 4
    assert pick(by, train[:1], asked) == [0] * 12


def test_a_classifier_separates_what_means_do_not() -> None:
    rng = np.random.default_rng(2)
    side = np.where(np.arange(200) % 2, 1.0, -1.0)[:, None]
    along = rng.uniform(-10, 10, size=(200, 1)) - 3 * side
    rows = np.hstack([along, along + 3 * side])
    train = [rows[0::2], rows[1::2]]
    wanted = [0] * 100 + [1] * 100
    asked = np.concatenate(train)
    right = [
        sum(a == b for a, b in zip(pick(by, train, asked), wanted, strict=True)) for by in ("centroid", "classifier")
    ]
    assert right[0] < 150 < 195 <= right[1]


def test_arrow_answers_are_those_of_the_model_asked_row_by_row(base_source: BaseSource, tmp_path: Path) -> None:
    folders = [
        str(write_adapter(tmp_path / f"{seed}", Path(base_source.source), kind="lora", seed=seed)) for seed in (1, 2)
    ]
    base = load(base_source)
    model = create_arrow_model(base.model, folders, ArrowConfig(top_k=2))
    model.eval()
    found = greedy_texts(base, model, PROMPTS, max_new_tokens=6)
    for text, prompt in zip(found, PROMPTS, strict=True):
        tokens = oracle_tokens(model, prompt_tokens(base, prompt), 6)
        stop = next((at for at, token in enumerate(tokens) if token in base.stop_tokens), 6)
        assert text == base.tokenizer.decode(tokens[:stop], skip_special_tokens=True)
