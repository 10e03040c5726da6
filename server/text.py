"""Tokens to text while they arrive: whole characters, cut at stop strings. Knows no engine, no experts, no HTTP."""

from collections.abc import Sequence
from typing import Protocol

# What a decoder puts where bytes do not (yet) make up a character.
HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
    """The one thing asked of a transformers tokenizer."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str | list[str]: ...


class IncrementalDecoder:
    """Text of a growing token sequence, without ever showing half a character or a special token.

    Only the tokens since the last whole character are decoded again, behind the segment before them, because some
    tokenizers decode a token differently at the very start.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._tail: list[int] = []
        self._num_shown = 0

    def push(self, token: int) -> str:
        """The characters this token completes."""
        self._tail.append(token)
        text = self._decode(self._context + self._tail)
        whole = text.rstrip(HALF_CHARACTER)
        shown, self._num_shown = self._num_shown, max(self._num_shown, len(whole))
        fresh = whole[shown:]
        if fresh and whole == text:
            self._context, self._tail = self._tail, []
            self._num_shown = len(self._decode(self._context))
        return fresh

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str), "decoding one sequence gave several texts. This is a bug."
        return text


class StopMatcher:
    """Cuts a text stream where a stop string completes; holds back only what could still begin one.

    Of several stop strings the one that completes first wins, so the cut does not depend on how the text was split.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would match everywhere. This is a bug."
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """What may be shown now; nothing after a match."""
        if self.matched:
            return ""
        text = self._held + text
        cut = self._first_match(text)
        if cut is not None:
            self.matched, self._held = True, ""
            return text[:cut]
        keep = self._num_held(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> int | None:
        """Where the stop string begins that ends first, the longest of those ending together."""
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _num_held(self, text: str) -> int:
        """Length of the longest suffix that is a proper prefix of a stop string."""
        longest = min(len(text), max((len(stop) for stop in self._stops), default=1) - 1)
        for length in range(longest, 0, -1):
            suffix = text[len(text) - length :]
            if any(len(stop) > length and stop.startswith(suffix) for stop in self._stops):
                return length
        return 0


class TextStream:
    """A generation's text, piece by piece, as the client is to see it.

    `strip_leading_space` drops one space at the start: self-selecting experts were trained to answer
    "<<pos>> " + text, so their first text begins with it.
    """

    def __init__(self, tokenizer: Tokenizer, *, stops: Sequence[str] = (), strip_leading_space: bool = False) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._stops = StopMatcher(stops)
        self._strip_leading_space = strip_leading_space

    @property
    def stopped(self) -> bool:
        """A stop string has ended the text."""
        return self._stops.matched

    def push(self, token: int) -> str:
        """The text that may be shown now that this token is there; often empty."""
        fresh = self._decoder.push(token)
        if fresh and self._strip_leading_space:
            self._strip_leading_space = False
            fresh = fresh.removeprefix(" ")
        return self._stops.push(fresh)

    def flush(self) -> str:
        """The rest, at the end of a generation. A character cut in half by the end is left out."""
        return self._stops.flush()
