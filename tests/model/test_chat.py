"""Raw prompts: text as the tokenizer takes it, and where their body ends."""

from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from server.errors import InvalidRequest
from server.model.chat import ChatFormat
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
    assert chat.raw("the fox", ()).tokens == (0, *bare)
    assert chat.raw(bare, ()).tokens == bare


def test_the_body_of_a_raw_prompt_ends_where_the_first_expert_wakes_up_or_at_its_end(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    chat = ChatFormat(tokenizer)
    rendered = chat.render([{"role": "user", "content": "hello"}])
    invocation = chat.generation_prompt
    assert chat.raw(rendered.tokens, [(invocation, ())]) == rendered
    assert chat.raw(rendered.tokens + chat.encode("Well,"), [(invocation, ())]).body_length == rendered.body_length
    assert chat.raw(rendered.tokens * 2, [(invocation, ())]).body_length == len(rendered.tokens) + rendered.body_length
    assert chat.raw((5, 6, 7, 8), [((8,), ()), ((6, 7), ()), ((9,), ())]).body_length == 1
    assert chat.raw((5, 6, 7, 8), [((5,), ())]).body_length == 0
    assert chat.raw((5, 6, 7, 8), [((9,), ())]).body_length == 4
    assert chat.raw((9, 6, 7, 8), [((9,), (9,))]).body_length == 4  # the last one wakes it up, behind the prompt


@pytest.mark.parametrize("prompt", ["", (), (1, -1), (1, 400)])
def test_a_prompt_without_tokens_or_with_strange_ones_is_refused(
    tokenizer: PreTrainedTokenizerBase, prompt: str | tuple[int, ...]
) -> None:
    with pytest.raises(InvalidRequest):
        ChatFormat(tokenizer).raw(prompt, ())
