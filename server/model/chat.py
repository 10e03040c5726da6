"""Messages to tokens: chat template, generation prompt, indicator tokens. Knows no tensors and no weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import jinja2
from transformers import PreTrainedTokenizerBase

from expert_store import Indicators
from server.errors import InvalidRequest, UnusableIndicators

Message = dict[str, str]
MAX_INDICATOR_TOKENS = 16
_KNOWN_INDICATORS = 256  # pairs whose tokens are kept: most experts of a pool use the same one

# For base models whose tokenizer brings no chat template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt. `tokens[:body_length]` is everything before the generation prompt."""

    tokens: tuple[int, ...]
    body_length: int

    def shared_before(self, invocations: Iterable[tuple[Sequence[int], Sequence[int]]]) -> "Prompt":
        """The same with a body that ends before any of those asked wakes up, since what experts share is the body.

        `invocations` are what wakes experts up, and what stands behind the prompt when each is asked.
        """
        starts = [activation_start((*self.tokens, *behind), invocation) for invocation, behind in invocations]
        return Prompt(self.tokens, min([self.body_length, *(start for start in starts if start is not None)]))


@dataclass(frozen=True)
class IndicatorTokens:
    """Accept and reject strings as tokens; they share a prefix and then differ (SEE, arXiv 2504.06664)."""

    accept: tuple[int, ...]
    reject: tuple[int, ...]

    @cached_property
    def shared_length(self) -> int:
        return common_prefix_length(self.accept, self.reject)

    @property
    def shared(self) -> tuple[int, ...]:
        return self.accept[: self.shared_length]

    @property
    def accept_token(self) -> int:
        return self.accept[self.shared_length]

    @property
    def reject_token(self) -> int:
        return self.reject[self.shared_length]


class ChatFormat:
    """Renders conversations the way the base model's chat template wants them. `num_tokens`: what that has embeddings
    for, where its tokenizer may know more."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, template: str | None = None, num_tokens: int | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._num_tokens = num_tokens
        self._template = template or tokenizer.chat_template or PLAIN_TEMPLATE
        self._indicator_tokens = lru_cache(_KNOWN_INDICATORS)(self._encode_indicators)

    def render(self, messages: Sequence[Message]) -> Prompt:
        """Tokens of the conversation with the generation prompt behind it. Raises InvalidRequest."""
        tokens = self.encode(self._text(messages, generation_prompt=True))
        body = self.encode(self._text(messages, generation_prompt=False))
        refuse_unreadable(tokens, self._num_tokens)
        return Prompt(tokens=tokens, body_length=common_prefix_length(tokens, body))

    def raw(self, prompt: str | Sequence[int]) -> Prompt:
        """Text or tokens as they are, with no template; text gets the tokenizer's own special tokens.

        All of it is body. Raises InvalidRequest.
        """
        tokens = tuple(self._tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt)
        vocabulary = range(len(self._tokenizer))
        if not tokens:
            raise InvalidRequest("the prompt has no tokens", param="prompt")
        if any(token not in vocabulary for token in tokens):
            raise InvalidRequest(f"the prompt has tokens outside 0 to {vocabulary[-1]}", param="prompt")
        refuse_unreadable(tokens, self._num_tokens)
        return Prompt(tokens, len(tokens))

    @cached_property
    def generation_prompt(self) -> tuple[int, ...]:
        """The tokens an activated expert of ours is invoked by."""
        prompt = self.render([{"role": "user", "content": "x"}])
        return prompt.tokens[prompt.body_length :]

    @property
    def common_tokens(self) -> frozenset[int]:
        """The tokens that the template brings into every prompt of a user, whatever is said.

        None where the template refuses so short a conversation.
        """
        one, other = self._two_prompts()
        return frozenset(one) & frozenset(other)

    @property
    def opening(self) -> tuple[int, ...]:
        """The tokens that every prompt of a user begins with, the template's system prompt for one.

        None where the template refuses so short a conversation.
        """
        one, other = self._two_prompts()
        return one[: common_prefix_length(one, other)]

    def _two_prompts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Prompts of users who say different things; both empty where the template refuses them."""
        try:
            one, other = (self.render([{"role": "user", "content": text}]).tokens for text in ("x", "0"))
        except jinja2.TemplateError:
            return (), ()
        return one, other

    def indicator_tokens(self, indicators: Indicators) -> IndicatorTokens:
        """Raises UnusableIndicators where the tokenizer cannot tell them apart or the base lacks a token of them."""
        return self._indicator_tokens(indicators)

    def _encode_indicators(self, indicators: Indicators) -> IndicatorTokens:
        tokens = IndicatorTokens(accept=self.encode(indicators.accept), reject=self.encode(indicators.reject))
        lengths = (len(tokens.accept), len(tokens.reject))
        if tokens.shared_length in lengths:
            raise _unusable(indicators, "one of them begins with the other")
        if max(lengths) > MAX_INDICATOR_TOKENS:
            raise _unusable(indicators, f"{max(lengths)} tokens are more than {MAX_INDICATOR_TOKENS}")
        largest = max(*tokens.accept, *tokens.reject)
        if self._num_tokens is not None and largest >= self._num_tokens:
            raise _unusable(indicators, f"the base has no embedding for token {largest}: use others")
        return tokens

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of the text alone, with nothing put before or behind it."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        )


def refuse_unreadable(tokens: Sequence[int], num_tokens: int | None) -> None:
    """Raises InvalidRequest where the base has no embedding for one: a step, or a prompt's features, would fail at it.

    None: as many as the tokenizer knows.
    """
    if num_tokens is not None and tokens and not 0 <= min(tokens) <= max(tokens) < num_tokens:
        raise InvalidRequest(
            f"the prompt has tokens outside 0 to {num_tokens - 1}, all that the base model has embeddings for",
            param="prompt",
        )


def _unusable(indicators: Indicators, reason: str) -> UnusableIndicators:
    return UnusableIndicators(accept=indicators.accept, reject=indicators.reject, reason=reason)


def activation_start(tokens: Sequence[int], invocation: Sequence[int]) -> int | None:
    """Where the last occurrence of the invocation tokens begins, as in PEFT's aLoRA; None if they do not occur."""
    width = len(invocation)
    wanted = tuple(invocation)
    for start in range(len(tokens) - width, -1, -1):
        if tuple(tokens[start : start + width]) == wanted:
            return start
    return None


def common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
