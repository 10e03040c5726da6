"""Incremental text against the obvious way: decode everything, then cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from server.text import HALF_CHARACTER, IncrementalDecoder, StopMatcher, TextStream
from tests.support import tiny


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def whole(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """The obvious way. What is cut in half at the very end is left out."""
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).rstrip(HALF_CHARACTER)


def cut(text: str, stops: list[str]) -> str:
    """The obvious way: letter by letter, until the text so far ends with a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(len(stop) for stop in found)]
    return text


@settings(max_examples=150, deadline=None)
@given(tokens=st.lists(st.integers(0, 399), max_size=40))
def test_pieces_of_any_tokens_join_to_the_decoded_whole(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> None:
    decoder = IncrementalDecoder(tokenizer)
    assert "".join(decoder.push(token) for token in tokens) == whole(tokenizer, tokens)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=20))
def test_no_piece_of_real_text_holds_half_a_character(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    text = text.replace(HALF_CHARACTER, "")
    decoder = IncrementalDecoder(tokenizer)
    pieces = [decoder.push(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert all(HALF_CHARACTER not in piece for piece in pieces)
    assert "".join(pieces) == text


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.text(alphabet="abc", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_cut_wherever_the_pieces_are_split(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in pieces)
    expected = cut("".join(pieces), stops)
    assert expected.startswith(shown)
    assert shown + matcher.flush() == expected
    assert matcher.matched == any(stop in "".join(pieces) for stop in stops)


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.text(alphabet="ab", min_size=1, max_size=3), min_size=1, max_size=8),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=2),
)
def test_only_what_could_begin_a_stop_string_is_held_back(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in pieces)
    if not matcher.matched:
        held = "".join(pieces)[len(shown) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_one_leading_space_is_stripped_and_only_at_the_start(tokenizer: PreTrainedTokenizerBase) -> None:
    for text, expected in ((" a b", "a b"), ("  a", " a"), ("a b", "a b"), (" ", "")):
        stream = TextStream(tokenizer, strip_leading_space=True)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join([stream.push(token) for token in tokens] + [stream.flush()]) == expected


def test_special_tokens_are_not_text(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer)
    tokens = tokenizer("<|im_start|>hi<|im_end|>", add_special_tokens=False)["input_ids"]
    assert "".join(stream.push(token) for token in tokens) == "hi"


def test_nothing_follows_a_stop_string(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer, stops=["lo"])
    tokens = tokenizer("hello world", add_special_tokens=False)["input_ids"]
    assert "".join([stream.push(token) for token in tokens] + [stream.flush()]) == "hel"
    assert stream.stopped
