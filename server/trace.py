"""What one request was: marks on its way, and one record at its end. Knows clocks and counts; decides nothing.

A request that a client's mistake ended is "invalid", one whose client went away "disconnected".
"""

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import structlog

from expert_store import UnknownAlias, UnknownExpert, UnknownVersion
from server.errors import InvalidRequest, RouterNotReady, TooBusy
from server.metrics import Endpoint, Metrics, Outcome, RequestRecord
from server.routing.base import Decision

log = structlog.get_logger()

# The last two are OpenAI's, and clients have come to look for them.
_ID_PREFIXES: Mapping[Endpoint, str] = {
    "generate": "generate",
    "route": "route",
    "completions": "cmpl",
    "chat_completions": "chatcmpl",
}
_CLIENT_MISTAKES = (InvalidRequest, RouterNotReady, UnknownExpert, UnknownVersion, UnknownAlias)


@dataclass(frozen=True)
class Usage:
    """Tokens. `computed_tokens` were run through the model, prompt, probes and answer together."""

    prompt_tokens: int
    completion_tokens: int
    computed_tokens: int


@dataclass(frozen=True)
class Timings:
    """Milliseconds. `first_token_ms` and `total_ms` count from the request's arrival."""

    queue_ms: float
    routing_ms: float
    first_token_ms: float | None
    total_ms: float


class Measured(Protocol):
    """The engine's own figures of a request."""

    @property
    def queue_seconds(self) -> float: ...

    @property
    def computed_tokens(self) -> int: ...


class Trace:
    """A context manager around one request. `outcome` is for whoever finishes it well; errors set it themselves."""

    def __init__(self, endpoint: Endpoint, metrics: Metrics) -> None:
        self.request_id = f"{_ID_PREFIXES[endpoint]}-{uuid.uuid4().hex}"
        self.outcome: Outcome = "error"
        self.refused = False
        self.prompt_tokens = 0
        self._endpoint = endpoint
        self._metrics = metrics
        self._started = time.perf_counter()
        self._session: Measured | None = None
        self._decision: Decision | None = None
        self._routing_seconds: float | None = None
        self._first_token_seconds: float | None = None
        self._last_token: float | None = None
        self._num_tokens = 0

    def on_session(self, session: Measured) -> None:
        """The engine has let the request in."""
        self._session = session

    def on_decision(self, decision: Decision, seconds: float) -> None:
        """It is settled who answers, which took so long."""
        self._decision, self._routing_seconds = decision, seconds

    def on_token(self) -> None:
        """A token of the answer has come."""
        now = time.perf_counter()
        if self._last_token is None:
            self._first_token_seconds = now - self._started
        else:
            self._metrics.on_token(now - self._last_token)
        self._last_token = now
        self._num_tokens += 1

    def usage(self) -> Usage:
        """So far."""
        computed = self._session.computed_tokens if self._session is not None else 0
        return Usage(self.prompt_tokens, self._num_tokens, computed)

    def timings(self) -> Timings:
        """So far."""
        first = self._first_token_seconds
        return Timings(
            queue_ms=_milliseconds(self._session.queue_seconds if self._session is not None else 0.0),
            routing_ms=_milliseconds(self._routing_seconds or 0.0),
            first_token_ms=None if first is None else _milliseconds(first),
            total_ms=_milliseconds(time.perf_counter() - self._started),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.outcome = _outcome(error)
        record = self._record(error)
        self._metrics.on_request(record)
        log.info("request", **_log_fields(record))

    def _record(self, error: BaseException | None) -> RequestRecord:
        usage = self.usage()
        return RequestRecord(
            request_id=self.request_id,
            endpoint=self._endpoint,
            outcome=self.outcome,
            total_seconds=time.perf_counter() - self._started,
            error=None if error is None or self.outcome == "disconnected" else f"{type(error).__name__}: {error}",
            decision=self._decision,
            refused=self.refused,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            computed_tokens=usage.computed_tokens,
            queue_seconds=None if self._session is None else self._session.queue_seconds,
            routing_seconds=self._routing_seconds,
            first_token_seconds=self._first_token_seconds,
        )


def _outcome(error: BaseException) -> Outcome:
    if isinstance(error, asyncio.CancelledError):
        return "disconnected"
    if isinstance(error, TooBusy):
        return "busy"
    return "invalid" if isinstance(error, _CLIENT_MISTAKES) else "error"


def _log_fields(record: RequestRecord) -> dict[str, Any]:
    """The record as flat fields, without what is not known."""
    decision = record.decision
    fields = {
        "id": record.request_id,
        "outcome": record.outcome,
        "error": record.error,
        "reason": decision.reason if decision else None,
        "expert": decision.expert.ref if decision and decision.expert else None,
        "experts": _shares(decision) if decision and not decision.expert else None,
        "asked": len(decision.considered) if decision else None,
        "catalog_generation": decision.catalog_generation if decision else None,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "computed_tokens": record.computed_tokens,
        "total_ms": _milliseconds(record.total_seconds),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _shares(decision: Decision) -> str | None:
    """A mixture as "sql@1:0.62 dates@2:0.38"."""
    return " ".join(f"{share.expert.ref}:{share.weight:.2f}" for share in decision.shares) or None


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
