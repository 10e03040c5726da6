"""What can go wrong while serving, as exceptions. Knows no HTTP: the table in `server.api.errors` gives each a status.

RelayError
├── InvalidRequest              the request contradicts itself or the server's limits
│   ├── PromptTooLong           prompt plus answer exceed the model's context
│   ├── RequestTooLarge         the KV cache could never hold the request
│   ├── ExpertTooLarge          the host cache could never hold the expert
│   ├── InvocationMissing       an activated expert's invocation tokens do not occur in the prompt
│   ├── NonFiniteLogits         the expert's numbers overflow on this prompt
│   └── NonFiniteGradient       the prompt's gradient overflows, or vanishes, so it has no direction
├── RouterNotReady              a router lacks what it decides with, or that does not fit
├── NotSelfSelecting            an expert without indicators was put into the chain
├── UnusableIndicators          the base model's tokens cannot tell accept from reject
├── BaseModelError              the base model cannot be loaded or is not supported
├── SettingsError               a setting is unknown or unusable
├── ForeignStore                the store's experts were trained on another base
├── TooBusy                     queue full; try again later
├── RegistrationsBusy           too many registrations at a time; try again later
├── NotReady                    starting up or shutting down
└── EngineStopped               the engine has shut down or failed
"""

from collections.abc import Sequence
from typing import Self


class RelayError(Exception):
    """Root of the tree.

    `param` names the request field at fault, where one is.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(RelayError):
    """The request is well-formed but cannot be served as asked."""


class PromptTooLong(InvalidRequest):
    """The prompt and the tokens asked for do not fit into the model's context."""

    def __init__(self, *, prompt_tokens: int, max_new_tokens: int, limit: int, accept_tokens: int = 0) -> None:
        accept = f", {accept_tokens} stand between them for the expert to accept with" if accept_tokens else ""
        wanted = "an answer needs 1 more" if max_new_tokens == 1 else f"{max_new_tokens} new ones were asked for"
        super().__init__(
            f"the prompt has {prompt_tokens} tokens and {wanted}{accept}, "
            f"but the context holds {limit}: shorten the prompt or lower max_new_tokens",
            param="prompt",
        )
        self.prompt_tokens = prompt_tokens
        self.limit = limit


class RequestTooLarge(InvalidRequest):
    """The request alone needs more KV blocks, or more expert slots, than the server has."""

    @classmethod
    def blocks(cls, *, needed: int, total: int, block_tokens: int) -> Self:
        return cls(
            f"the request needs {needed} KV blocks of {block_tokens} tokens, the cache has {total}: "
            "shorten the prompt, lower max_new_tokens or start the server with more --kv-memory",
            param="max_new_tokens",
        )

    @classmethod
    def slots(cls, *, needed: int, total: int) -> Self:
        return cls(
            f"the experts that are needed together need {needed} slots, the server has {total}: start it with more "
            "--expert-slots, or let it take fewer together (--chain-window, --plain-window, --gradient-experts)",
            param="expert",
        )


class ExpertTooLarge(InvalidRequest):
    """One expert's weights are larger than the whole host cache."""

    def __init__(self, ref: str, *, weight_bytes: int, budget_bytes: int, param: str) -> None:
        super().__init__(
            f"the weights of expert {ref} have {weight_bytes} bytes, the host cache holds {budget_bytes}: "
            "start the server with more --expert-memory, or train the expert with a lower rank",
            param=param,
        )


class InvocationMissing(InvalidRequest):
    """An activated expert would silently act as the base model, because nothing in the prompt wakes it up."""

    def __init__(self, ref: str) -> None:
        super().__init__(
            f"expert {ref} is activated by invocation tokens that do not occur in this prompt: "
            "render the prompt with the chat template the expert was trained with",
            param="expert",
        )


class NonFiniteLogits(InvalidRequest):
    """The model's numbers overflowed, which an expert with far too large weights can do on some prompts."""

    def __init__(self, ref: str | None) -> None:
        who = "the base model" if ref is None else f"expert {ref}"
        super().__init__(
            f"{who} gives numbers that are not finite for this prompt: name another expert or version", param="expert"
        )


class RouterNotReady(RelayError):
    """A router has not been trained, or was for another base or other experts."""

    def __init__(self, router: str, *, missing: Sequence[str], way_out: str | None) -> None:
        mend = "" if way_out is None else f": run `{way_out}`"
        super().__init__(f"router {router} is not ready: {'; '.join(missing)}{mend}", param="router")


class NonFiniteGradient(InvalidRequest):
    """A prompt whose gradient has no direction is near to no expert."""

    def __init__(self, length: float) -> None:
        super().__init__(
            f"the prompt's gradient through the base adapter has length {length:g}, so it has no direction to route "
            "by: name an expert, or ask another router",
            param="prompt",
        )


class NotSelfSelecting(RelayError):
    """Only experts with indicators can accept or reject a query."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"expert {name!r} has no accept/reject indicators, so it cannot choose its own queries: "
            'name it with "expert", register a version trained with `relay train see`, or give it a gate'
            " with `relay train gate`",
            param="order",
        )


class UnusableIndicators(RelayError):
    """Accept and reject strings must differ in a token before either ends, and be short."""

    def __init__(self, *, accept: str, reject: str, reason: str) -> None:
        super().__init__(
            f"indicators {accept!r} and {reject!r} cannot be used with this base model: {reason}",
            param="indicators",
        )


class BaseModelError(RelayError):
    """The base model could not be found, loaded or driven."""


class SettingsError(RelayError):
    """A setting is unknown, or its value cannot be used."""


class ForeignStore(RelayError):
    """An expert in the store does not belong to the base model this server runs."""

    def __init__(self, ref: str, *, trained_on: str, runs: str) -> None:
        super().__init__(
            f"expert {ref} was trained on base {trained_on}, this server runs {runs}: "
            "start the server with that base, or give it another --store"
        )


class NotReady(RelayError):
    """The base model is still loading, or the server is shutting down."""

    def __init__(self) -> None:
        super().__init__("the server is not ready yet: ask /readyz, or try again in a moment")


class RegistrationsBusy(RelayError):
    """Uploads cost disk and memory, so only a few are taken at a time."""

    def __init__(self, *, running: int, retry_after_seconds: int) -> None:
        super().__init__(f"{running} registrations are already running: try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class TooBusy(RelayError):
    """Every place in the queue is taken."""

    def __init__(self, *, waiting: int, retry_after_seconds: int) -> None:
        super().__init__(
            f"{waiting} requests are already waiting: try again in {retry_after_seconds} s, "
            "or start the server with a larger --max-queue"
        )
        self.retry_after_seconds = retry_after_seconds


class EngineStopped(RelayError):
    """The engine thread has ended; requests cannot be served any more."""
