"""Raw prompts: text as the tokenizer takes it, and where their body ends."""

from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from expert_store import Indicators
from server.errors import InvalidRequest, UnusableIndicators
from server.model.chat import ChatFormat, Message
from tests.support import tiny


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    tiny.write_tokenizer(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_raw_text_gets_the_tokenizers_own_special_tokens_and_raw_tokens_get_none(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $0", special_tokens=[("<|im_start|>", 0)]
    )
    chat = ChatFormat(tokenizer)
    bare = chat.encode("the fox")
    assert chat.raw("the fox").tokens == (0, *bare)
    assert chat.raw(bare).tokens == bare


def test_the_body_ends_where_the_first_expert_wakes_up_or_where_it_ended(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = ChatFormat(tokenizer)
    rendered = chat.render([{"role": "user", "content": "hello"}])
    body, invocation = rendered.body_length, chat.generation_prompt

    def shared(tokens: tuple[int, ...], *invocations: tuple[tuple[int, ...], tuple[int, ...]]) -> int:
        return chat.raw(tokens).shared_before(invocations).body_length

    assert chat.raw(rendered.tokens).shared_before([(invocation, ())]) == rendered
    assert shared(rendered.tokens + chat.encode("Well,"), (invocation, ())) == body
    assert shared(rendered.tokens * 2, (invocation, ())) == len(rendered.tokens) + body
    assert shared((5, 6, 7, 8), ((8,), ()), ((6, 7), ()), ((9,), ())) == 1
    assert shared((5, 6, 7, 8), ((5,), ())) == 0
    assert shared((5, 6, 7, 8), ((9,), ())) == 4
    assert shared((9, 6, 7, 8), ((9,), (9,))) == 4  # the last one wakes it up, behind the prompt
    assert rendered.shared_before([(invocation, ())]) == rendered
    assert rendered.shared_before([(rendered.tokens[2:4], ())]).body_length == 2
    assert rendered.shared_before([((9,), (9,))]) == rendered


@pytest.mark.parametrize("prompt", ["", (), (1, -1), (1, 400)])
def test_a_prompt_without_tokens_or_with_strange_ones_is_refused(
    tokenizer: PreTrainedTokenizerBase, prompt: str | tuple[int, ...]
) -> None:
    with pytest.raises(InvalidRequest):
        ChatFormat(tokenizer).raw(prompt)


def test_indicators_the_base_has_no_embedding_for_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer may know more tokens than its model."""
    indicators = Indicators()
    tokens = ChatFormat(tokenizer).indicator_tokens(indicators)
    largest = max(*tokens.accept, *tokens.reject)
    assert ChatFormat(tokenizer, num_tokens=largest + 1).indicator_tokens(indicators) == tokens
    with pytest.raises(UnusableIndicators, match=f"the base has no embedding for token {largest}"):
        ChatFormat(tokenizer, num_tokens=largest).indicator_tokens(indicators)


def test_a_prompt_the_base_has_no_embedding_for_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    messages: list[Message] = [{"role": "user", "content": "lazy dog"}]
    largest = max(ChatFormat(tokenizer).render(messages).tokens)
    ChatFormat(tokenizer, num_tokens=largest + 1).render(messages)
    chat = ChatFormat(tokenizer, num_tokens=largest)
    with pytest.raises(InvalidRequest, match="all that the base model has embeddings for"):
        chat.render(messages)
    with pytest.raises(InvalidRequest, match="all that the base model has embeddings for"):
        chat.raw([largest])
