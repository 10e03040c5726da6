"""One request from admission to its final record. Knows prompts, catalogs, decisions, tokens; nothing of HTTP.

    permit -> pin the catalog -> render -> shortlist -> KV memory -> name or route the expert -> generate -> record

Whatever a request holds (permit, pins, session) is released when its coroutine ends: by return, error or
cancellation.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

import jinja2

from expert_store import Catalog, ExpertVersion, Indicators, StoreError
from server.admission import Activity, Admission
from server.engine.types import Branches, Token
from server.errors import InvalidRequest
from server.metrics import Endpoint, Metrics
from server.model.chat import IndicatorTokens, Message, Prompt
from server.model.sampling import Sampling
from server.pins import Pins
from server.routing.base import Decision, Prober, RouterName, Shortlist, pinned, unrouted
from server.text import TextStream, Tokenizer
from server.trace import Measured, Timings, Trace, Usage

FinishReason = Literal["stop", "length", "refused"]


class EngineSession(Prober, Measured, Protocol):
    """What a request needs of the engine once it has been let in; leaving it frees everything it holds."""

    def generate(self, expert: ExpertVersion | None, sampling: Sampling) -> AsyncIterator[Token]: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class RequestEngine(Protocol):
    """The seam to the engine; `server.engine.Engine` in production."""

    async def open(self, prompt: Prompt, *, max_new_tokens: int, branches: Branches | None = None) -> EngineSession: ...


class PromptFormat(Protocol):
    """Messages or raw prompts to tokens; `server.model.chat.ChatFormat` in production."""

    def render(self, messages: Sequence[Message]) -> Prompt: ...

    def raw(
        self, prompt: str | Sequence[int], invocations: Iterable[tuple[Sequence[int], Sequence[int]]]
    ) -> Prompt: ...

    def indicator_tokens(self, indicators: Indicators) -> IndicatorTokens: ...


class Router(Protocol):
    """Chooses who answers; `server.routing.ChainRouter` in production."""

    def branches(self, catalog: Catalog, shortlist: Shortlist | None = None) -> Branches: ...

    async def route(self, catalog: Catalog, prober: Prober, shortlist: Shortlist | None = None) -> Decision: ...


class Shortlister(Protocol):
    """Says whom the router need ask at all; `server.routing.Shortlists` in production. May take a while."""

    def propose(self, catalog: Catalog, tokens: Sequence[int], size: int) -> Shortlist: ...


@dataclass(frozen=True)
class RawPrompt:
    """Text or tokens that go to the model as they are, past the chat template."""

    content: str | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Query:
    """Who is to answer what. `expert` is a reference and settles it; else the router does.

    `shortlist` is how many experts the chain may ask beside those without a profile; 0 is all.
    """

    prompt: tuple[Message, ...] | RawPrompt
    expert: str | None
    router: RouterName
    shortlist: int


@dataclass(frozen=True, kw_only=True)
class GenerationQuery(Query):
    """`refuse_fallback`: rather no answer than the base model's when no expert accepts."""

    sampling: Sampling
    stops: tuple[str, ...]
    refuse_fallback: bool


@dataclass(frozen=True)
class RouteAnswer:
    """What a dry run says."""

    request_id: str
    decision: Decision
    usage: Usage
    timings: Timings


@dataclass(frozen=True)
class Answer(RouteAnswer):
    """What a generation came to."""

    text: str
    finish_reason: FinishReason


class Listener(Protocol):
    """Follows a generation while it happens; what it raises ends the request."""

    async def on_decision(self, request_id: str, decision: Decision) -> None: ...

    async def on_text(self, text: str) -> None: ...


class Unheard:
    """The listener of an answer that is given whole."""

    async def on_decision(self, request_id: str, decision: Decision) -> None: ...

    async def on_text(self, text: str) -> None: ...


class Service:
    """Runs requests. Lives on the event loop's thread; `catalog` gives the current snapshot."""

    def __init__(
        self,
        *,
        engine: RequestEngine,
        chat: PromptFormat,
        tokenizer: Tokenizer,
        router: Router,
        shortlists: Shortlister,
        catalog: Callable[[], Catalog],
        pins: Pins,
        admission: Admission,
        activity: Activity,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._chat = chat
        self._tokenizer = tokenizer
        self._router = router
        self._shortlists = shortlists
        self._catalog = catalog
        self._pins = pins
        self._admission = admission
        self._activity = activity
        self._metrics = metrics

    async def generate(self, query: GenerationQuery, listener: Listener, *, endpoint: Endpoint = "generate") -> Answer:
        """The whole answer; `listener` hears of the decision first and of the text piece by piece."""
        with Trace(endpoint, self._metrics) as trace:
            async with self._routed(query, trace, query.sampling.max_new_tokens) as (session, decision):
                await listener.on_decision(trace.request_id, decision)
                if decision.fallback and query.refuse_fallback:
                    trace.refused = True
                    text, reason = _REFUSAL
                else:
                    text, reason = await self._answer(session, decision, query, trace, listener)
            trace.outcome = reason
            return Answer(trace.request_id, decision, trace.usage(), trace.timings(), text, reason)

    async def route(self, query: Query) -> RouteAnswer:
        """The decision alone."""
        with Trace("route", self._metrics) as trace:
            async with self._routed(query, trace, max_new_tokens=0) as (_, decision):
                trace.outcome = "routed"
            return RouteAnswer(trace.request_id, decision, trace.usage(), trace.timings())

    @asynccontextmanager
    async def _routed(
        self, query: Query, trace: Trace, max_new_tokens: int
    ) -> AsyncIterator[tuple[EngineSession, Decision]]:
        """A session for which it is settled who answers, on one catalog snapshot from beginning to end."""
        with self._admission.permit():
            catalog = self._catalog()
            named = _resolve(catalog, query.expert) if query.expert is not None else None
            readable = _readable(query, catalog, named)
            with self._pins.hold(readable) as hold:
                prompt = await self._render(query, readable)
                trace.prompt_tokens = len(prompt.tokens)
                shortlist = await self._shortlist(query, catalog, prompt)
                branches = self._router.branches(catalog, shortlist) if _is_routed(query) else None
                with self._activity.waiting.join(named.name if named else None):
                    opened = await self._engine.open(prompt, max_new_tokens=max_new_tokens, branches=branches)
                async with opened as session:
                    trace.on_session(session)
                    with self._activity.running.join() as seat:
                        decision = await self._decide(query, catalog, named, shortlist, session, trace)
                        hold.narrow(decision.expert)
                        seat.use(decision.expert.name if decision.expert else None)
                        yield session, decision

    async def _render(self, query: Query, readable: Sequence[ExpertVersion]) -> Prompt:
        """In a thread, since a long prompt takes a while to tokenise."""
        try:
            if isinstance(query.prompt, RawPrompt):
                invocations = {self._invocation(v.asked_as) for v in readable if v.asked_as.kind == "alora"}
                return await asyncio.to_thread(self._chat.raw, query.prompt.content, invocations)
            return await asyncio.to_thread(self._chat.render, query.prompt)
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"the base model's chat template refuses these messages: {error}", param="messages"
            ) from error

    def _invocation(self, expert: ExpertVersion) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What wakes an activated expert up, and the tokens that stand behind the prompt it is asked."""
        indicators = expert.manifest.indicators
        shared = () if indicators is None else self._chat.indicator_tokens(indicators).shared
        return expert.invocation_tokens or (), shared

    async def _shortlist(self, query: Query, catalog: Catalog, prompt: Prompt) -> Shortlist | None:
        """In a thread, since the first one on a new catalog builds an index."""
        if not _is_routed(query) or not query.shortlist:
            return None
        return await asyncio.to_thread(self._shortlists.propose, catalog, prompt.tokens, query.shortlist)

    async def _decide(
        self,
        query: Query,
        catalog: Catalog,
        named: ExpertVersion | None,
        shortlist: Shortlist | None,
        session: EngineSession,
        trace: Trace,
    ) -> Decision:
        started = time.perf_counter()
        if named is not None:
            decision = pinned(query.router, named, catalog)
        elif query.router == "none":
            decision = unrouted(catalog)
        else:
            decision = await self._router.route(catalog, session, shortlist)
        trace.on_decision(decision, time.perf_counter() - started)
        return decision

    async def _answer(
        self,
        session: EngineSession,
        decision: Decision,
        query: GenerationQuery,
        trace: Trace,
        listener: Listener,
    ) -> tuple[str, FinishReason]:
        """Generates until an end-of-text token, a stop string or the token limit."""
        expert = decision.expert
        stream = TextStream(
            self._tokenizer,
            stops=query.stops,
            strip_leading_space=expert is not None and expert.answers_after_accept,
        )
        pieces: list[str] = []
        reason: FinishReason = "stop"
        async for token in session.generate(expert, query.sampling):
            trace.on_token()
            # An end-of-text token is delivered like any other, but it is no text.
            piece = stream.push(token.token) if token.finish_reason != "stop" else ""
            if token.finish_reason is not None and not stream.stopped:
                reason = token.finish_reason
                piece += stream.flush()
            if piece:
                pieces.append(piece)
                await listener.on_text(piece)
            if stream.stopped:
                break
        return "".join(pieces), reason


_REFUSAL: tuple[str, FinishReason] = ("", "refused")


def _resolve(catalog: Catalog, ref: str) -> ExpertVersion:
    """Raises UnknownExpert, UnknownVersion or UnknownAlias, which then name the request's field."""
    try:
        return catalog.resolve(ref)
    except StoreError as error:
        error.field = "expert"
        raise


def _is_routed(query: Query) -> bool:
    return query.expert is None and query.router == "chain"


def _readable(query: Query, catalog: Catalog, named: ExpertVersion | None) -> Sequence[ExpertVersion]:
    """Every version whose files the request may come to read."""
    if named is not None:
        return (named,)
    return catalog.chain_experts() if _is_routed(query) else ()
