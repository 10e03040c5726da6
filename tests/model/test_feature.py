"""Features against the obvious loop, on a tiny base."""

from pathlib import Path

import numpy as np
import pytest

from server.model.base import Base, load_base
from server.model.chat import ChatFormat
from server.model.feature import FEATURE, PromptFeature
from tests.support.tiny import write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder: Path = write_base(tmp_path_factory.mktemp("base"))
    return load_base(str(folder), dtype="fp32", device="cpu", cache=folder)


@pytest.fixture(scope="module")
def chat(base: Base) -> ChatFormat:
    return ChatFormat(base.tokenizer)


def tokens(chat: ChatFormat, text: str) -> tuple[int, ...]:
    return chat.render([{"role": "user", "content": text}]).tokens


def by_loop(base: Base, said: set[int]) -> np.ndarray:
    """One token after another."""
    matrix = base.model.get_input_embeddings().weight.numpy()
    middle, total = matrix.mean(axis=0), np.zeros(matrix.shape[1])
    for token in said:
        away = matrix[token] - middle
        total += away / np.linalg.norm(away)
    return total / np.linalg.norm(total)


@pytest.mark.parametrize("text", ["the quick brown fox", "fox fox fox, the the quick brown", "0123456789"])
def test_a_feature_is_the_mean_of_what_was_said(base: Base, chat: ChatFormat, text: str) -> None:
    said = set(tokens(chat, text)) - chat.common_tokens
    found = PromptFeature(base, chat).of(tokens(chat, text))
    np.testing.assert_allclose(found, by_loop(base, said), atol=1e-5)


def test_the_template_says_nothing(base: Base, chat: ChatFormat) -> None:
    feature = PromptFeature(base, chat)
    bare, rendered = chat.encode("the quick brown fox"), tokens(chat, "the quick brown fox")
    assert set(bare) < set(rendered)
    np.testing.assert_allclose(feature.of(bare), feature.of(rendered), atol=1e-6)


def test_a_prompt_of_nothing_but_the_templates_tokens_has_a_feature_too(base: Base, chat: ChatFormat) -> None:
    found = PromptFeature(base, chat).of(sorted(chat.common_tokens))
    np.testing.assert_allclose(found, by_loop(base, set(chat.common_tokens)), atol=1e-5)


def test_a_template_that_refuses_lone_messages_leaves_nothing_out(base: Base) -> None:
    chat = ChatFormat(base.tokenizer, template="{{ raise_exception('two, please') }}")
    assert chat.common_tokens == frozenset()
    said = chat.encode("the quick brown fox")
    np.testing.assert_allclose(PromptFeature(base, chat).of(said), by_loop(base, set(said)), atol=1e-5)


def test_a_profile_is_the_mean_of_its_prompts(base: Base, chat: ChatFormat) -> None:
    feature = PromptFeature(base, chat)
    prompts = [tokens(chat, text) for text in ("the quick brown fox", "hello", "what is it?")]
    profile = feature.profile(prompts)
    assert (profile.feature, profile.base_fingerprint) == (FEATURE, base.spec.fingerprint)
    mean = np.mean([feature.of(prompt) for prompt in prompts], axis=0)
    np.testing.assert_allclose(profile.vector_D, mean / np.linalg.norm(mean), atol=1e-6)
    assert len(profile.vector_D) == feature.width
