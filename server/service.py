"""One request from admission to its final record. Knows prompts, catalogs, decisions, tokens; nothing of HTTP.

    permit -> pin the catalog -> render -> shortlist -> KV memory -> name or route the expert -> generate -> record

Whatever a request holds (permit, pins, session) is released when its coroutine ends: by return, error or
cancellation.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Protocol, Self

import jinja2

from expert_store import Catalog, ExpertVersion, Indicators, StoreError
from server.admission import Activity, Admission
from server.engine.answerer import Answerer
from server.engine.types import Branches, Token
from server.errors import InvalidRequest, RequestTooLarge
from server.metrics import Endpoint, Metrics
from server.model.chat import IndicatorTokens, Message, Prompt
from server.model.sampling import Sampling
from server.pins import Pins
from server.routing.base import (
    Decision,
    RoutePlan,
    Router,
    RouterName,
    RouterStatus,
    RoutingSession,
    ScoringRouter,
    Shortlist,
    pinned,
    unrouted,
)
from server.routing.fallback import with_fallback
from server.routing.gradient import GradientPlan
from server.routing.shadow import ShadowPlans
from server.text import TextStream, Tokenizer
from server.trace import Measured, Timings, Trace, Usage

FinishReason = Literal["stop", "length", "refused"]
Fallback = Literal["expert", "base", "refuse"]


class EngineSession(RoutingSession, Measured, Protocol):
    """What a request needs of the engine once it has been let in; leaving it frees everything it holds."""

    def generate(self, answerer: Answerer, sampling: Sampling) -> AsyncIterator[Token]: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class RequestEngine(Protocol):
    """The seam to the engine; `server.engine.Engine` in production."""

    @property
    def max_context(self) -> int: ...

    def room(self, prompt: Prompt, branches: Branches) -> int: ...

    async def open(self, prompt: Prompt, *, max_new_tokens: int, branches: Branches | None = None) -> EngineSession: ...


class PromptFormat(Protocol):
    """Messages or raw prompts to tokens; `server.model.chat.ChatFormat` in production."""

    def render(self, messages: Sequence[Message]) -> Prompt: ...

    def raw(self, prompt: str | Sequence[int]) -> Prompt: ...

    def indicator_tokens(self, indicators: Indicators) -> IndicatorTokens: ...


class Shortlister(Protocol):
    """Says whom the router need ask at all; `server.routing.Shortlists` in production. May take a while."""

    def propose(self, catalog: Catalog, tokens: Sequence[int], size: int, *, guarded: bool = False) -> Shortlist: ...


@dataclass(frozen=True)
class RawPrompt:
    """Text or tokens that go to the model as they are, past the chat template."""

    content: str | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Query:
    """Who is to answer what. `expert` is a reference and settles it; else the router does.

    `shortlist` is how many experts the chain may ask beside those without a profile; 0 is all. `guard`: of them only
    those whose guards know such prompts. `shadow` are routers to be scored beside the one that decides.
    `gradient_experts` is how many the gradient router mixes, `gradient_base_weight` what its base adapter weighs; None
    as it is set. `fallback` says who answers when no expert accepts: the pool's fallback expert, or else the base
    model; the base model in any case; nobody.
    """

    prompt: tuple[Message, ...] | RawPrompt
    expert: str | None
    router: RouterName
    shortlist: int
    guard: bool
    shadow: tuple[ScoringRouter, ...] = ()
    gradient_experts: int | None = None
    fallback: Fallback = "expert"
    gradient_base_weight: float | None = None

    def new_tokens(self, room: Callable[[], int]) -> int:  # noqa: ARG002 - as generations have it
        """How many there are to be at most, of those there is room for: a dry run generates none."""
        return 0


@dataclass(frozen=True, kw_only=True)
class GenerationQuery(Query):
    """How the answer is generated, and where it ends.

    With `as_fits` nobody asked for `sampling.max_new_tokens` by number: they are lowered to what there is room for.
    """

    sampling: Sampling
    stops: tuple[str, ...]
    as_fits: bool = False

    def new_tokens(self, room: Callable[[], int]) -> int:
        """At least one, so that a prompt that leaves no room is refused."""
        wanted = self.sampling.max_new_tokens
        return max(1, self.sampling.min_new_tokens, min(wanted, room())) if self.as_fits else wanted


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

    async def on_text(self, text: str, usage: Usage) -> None:
        """`usage`: so far."""
        ...


class Unheard:
    """The listener of an answer that is given whole."""

    async def on_decision(self, request_id: str, decision: Decision) -> None: ...

    async def on_text(self, text: str, usage: Usage) -> None: ...


class Service:
    """Runs requests. Lives on the event loop's thread; `catalog` gives the current snapshot."""

    def __init__(
        self,
        *,
        engine: RequestEngine,
        chat: PromptFormat,
        tokenizer: Tokenizer,
        routers: Mapping[ScoringRouter, Router],
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
        self._routers = routers
        self._shortlists = shortlists
        self._catalog = catalog
        self._pins = pins
        self._admission = admission
        self._activity = activity
        self._metrics = metrics

    async def generate(self, query: GenerationQuery, listener: Listener, *, endpoint: Endpoint = "generate") -> Answer:
        """The whole answer; `listener` hears of the decision first and of the text piece by piece."""
        with Trace(endpoint, self._metrics) as trace:
            async with self._routed(query, trace) as (session, decision, new_tokens):
                await listener.on_decision(trace.request_id, decision)
                if decision.fallback and query.fallback == "refuse":
                    trace.refused = True
                    text, reason = _REFUSAL
                else:
                    sampling = replace(query.sampling, max_new_tokens=new_tokens)
                    if query.as_fits:
                        sampling = self._behind_accept(sampling, decision, trace.prompt_tokens)
                    text, reason = await self._answer(session, decision, sampling, query.stops, trace, listener)
            trace.outcome = reason
            return Answer(trace.request_id, decision, trace.usage(), trace.timings(), text, reason)

    async def route(self, query: Query) -> RouteAnswer:
        """The decision alone."""
        with Trace("route", self._metrics) as trace:
            async with self._routed(query, trace) as (_, decision, _):
                trace.outcome = "routed"
            return RouteAnswer(trace.request_id, decision, trace.usage(), trace.timings())

    def router_statuses(self) -> tuple[list[RouterStatus], int]:
        """Which routers could decide on the current catalog, and its generation."""
        catalog = self._catalog()
        return [router.status(catalog) for router in self._routers.values()], catalog.generation

    @asynccontextmanager
    async def _routed(self, query: Query, trace: Trace) -> AsyncIterator[tuple[EngineSession, Decision, int]]:
        """A session for which it is settled who answers, on one catalog snapshot from beginning to end, and how many
        new tokens it has room for."""
        with self._admission.permit():
            case = self._case(query)
            with self._pins.hold([*case.readable, *case.shadows.readable]) as hold:
                prompt = await self._render(query, [*case.readable, *case.shadows.readable])
                trace.prompt_tokens = len(prompt.tokens)
                case = await self._shortlisted(case, query, prompt)
                with self._activity.waiting.join(case.named.name if case.named else None):
                    case, opened, new_tokens = await self._open(case, prompt, query)
                async with opened as session:
                    trace.on_session(session)
                    with self._activity.running.join() as seat:
                        decision = await _decide(case, prompt, session, trace)
                        hold.narrow(*decision.experts)
                        seat.use(*(expert.name for expert in decision.experts))
                        yield session, decision, new_tokens

    def _case(self, query: Query) -> "_Case":
        """Raises UnknownExpert, UnknownVersion, UnknownAlias, RouterNotReady."""
        catalog = self._catalog()
        named = _resolve(catalog, query.expert) if query.expert is not None else None

        def planned(router: ScoringRouter) -> RoutePlan:
            plan = self._routers[router].plan(catalog)
            if isinstance(plan, GradientPlan):
                plan = plan.wanted(query.gradient_experts, query.gradient_base_weight)
            return plan

        plan = planned(query.router) if named is None and query.router != "none" else None
        fallback = catalog.fallback_expert if query.fallback == "expert" else None
        shadows = ShadowPlans.of(query.shadow, planned, fallback)
        plan = None if plan is None else with_fallback(plan, fallback)
        return _Case(query.router, catalog, named, plan, shadows)

    async def _open(self, case: "_Case", prompt: Prompt, query: Query) -> "tuple[_Case, EngineSession, int]":
        """Shadows the engine has no room for are left out: they never cost a request its answer."""
        own = Branches() if case.plan is None else case.plan.branches(case.shortlist)
        shadows = case.shadows.branches(case.shortlist)
        new_tokens = query.new_tokens(lambda: self._engine.room(prompt, own))
        try:
            opened = await self._engine.open(prompt, max_new_tokens=new_tokens, branches=sum(shadows, own))
        except RequestTooLarge as error:
            if not shadows:
                raise
            case = replace(case, shadows=case.shadows.without_room(error.message))
            opened = await self._engine.open(prompt, max_new_tokens=new_tokens, branches=own)
        return case, opened, new_tokens

    def _behind_accept(self, sampling: Sampling, decision: Decision, prompt_tokens: int) -> Sampling:
        """With as many new tokens as the context leaves behind the accept string of whoever answers."""
        said = {e.manifest.indicators for e in decision.experts if e.answers_after_accept}
        accept = max((len(self._chat.indicator_tokens(one).accept) for one in said if one is not None), default=0)
        left = self._engine.max_context - prompt_tokens - accept
        return replace(sampling, max_new_tokens=max(1, min(sampling.max_new_tokens, left)))

    async def _render(self, query: Query, readable: Sequence[ExpertVersion]) -> Prompt:
        """In a thread, since a long prompt takes a while to tokenise."""
        try:
            return await asyncio.to_thread(self._rendered, query.prompt, readable)
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"the base model's chat template refuses these messages: {error}", param="messages"
            ) from error

    def _rendered(self, prompt: Sequence[Message] | RawPrompt, readable: Sequence[ExpertVersion]) -> Prompt:
        """With a body that all who may be asked share."""
        whole = self._chat.raw(prompt.content) if isinstance(prompt, RawPrompt) else self._chat.render(prompt)
        asked = (version.asked_as for version in readable if version.self_selecting)
        alike = {(one.invocation_tokens, one.manifest.indicators) for one in asked if one.kind == "alora"}
        return whole.shared_before({self._invocation(*one) for one in alike})

    def _invocation(
        self, tokens: tuple[int, ...] | None, indicators: Indicators | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What wakes an activated expert up, and the tokens that stand behind the prompt it is asked."""
        return tokens or (), () if indicators is None else self._chat.indicator_tokens(indicators).shared

    async def _shortlisted(self, case: "_Case", query: Query, prompt: Prompt) -> "_Case":
        """In a thread, since the first one on a new catalog builds an index."""
        guarded = query.guard and case.catalog.guarded and _is_like_training(query.prompt)
        if not case.asks_chain or not (query.shortlist or guarded):
            return case
        shortlist = await asyncio.to_thread(
            self._shortlists.propose, case.catalog, prompt.tokens, query.shortlist, guarded=guarded
        )
        return replace(case, shortlist=shortlist)

    async def _answer(
        self,
        session: EngineSession,
        decision: Decision,
        sampling: Sampling,
        stops: tuple[str, ...],
        trace: Trace,
        listener: Listener,
    ) -> tuple[str, FinishReason]:
        """Generates until an end-of-text token, a stop string or the token limit."""
        stream = TextStream(
            self._tokenizer,
            stops=stops,
            strip_leading_space=any(expert.answers_after_accept for expert in decision.experts),
        )
        pieces: list[str] = []
        reason: FinishReason = "stop"
        async for token in session.generate(decision.answerer, sampling):
            trace.on_token()
            # An end-of-text token is delivered like any other, but it is no text.
            piece = stream.push(token.token) if token.finish_reason != "stop" else ""
            if token.finish_reason is not None and not stream.stopped:
                reason = token.finish_reason
                piece += stream.flush()
            if piece:
                pieces.append(piece)
                await listener.on_text(piece, trace.usage())
            if stream.stopped:
                break
        return "".join(pieces), reason


_REFUSAL: tuple[str, FinishReason] = ("", "refused")


def _is_like_training(prompt: tuple[Message, ...] | RawPrompt) -> bool:
    """Whether it is one user's message, as training rows are: in the words of a whole conversation, or past the
    template, guards would take for strange what experts know."""
    return not isinstance(prompt, RawPrompt) and [message["role"] for message in prompt] == ["user"]


def _resolve(catalog: Catalog, ref: str) -> ExpertVersion:
    """Raises UnknownExpert, UnknownVersion or UnknownAlias, which then name the request's field."""
    try:
        return catalog.resolve(ref)
    except StoreError as error:
        error.field = "expert"
        raise


@dataclass(frozen=True)
class _Case:
    """What of a request is settled before its prompt is read, and then its shortlist.

    `plan` is the router's; None where an expert is `named`, or the base is.
    """

    router: RouterName
    catalog: Catalog
    named: ExpertVersion | None
    plan: RoutePlan | None
    shadows: ShadowPlans
    shortlist: Shortlist | None = None

    @property
    def asks_chain(self) -> bool:
        return (self.plan is not None and self.router == "chain") or "chain" in self.shadows.plans

    @property
    def readable(self) -> Sequence[ExpertVersion]:
        """Every version whose files the request itself may come to read."""
        if self.named is not None:
            return (self.named,)
        return self.plan.readable if self.plan is not None else ()


async def _decide(case: _Case, prompt: Prompt, session: EngineSession, trace: Trace) -> Decision:
    started = time.perf_counter()
    if case.named is not None:
        decision = pinned(case.router, case.named, case.catalog)
    elif case.plan is None:
        decision = unrouted(case.catalog)
    else:
        decision = await case.plan.route(prompt, session, case.shortlist)
    seconds = time.perf_counter() - started
    decision = replace(decision, shadows=await case.shadows.score(decision, prompt, session, case.shortlist))
    trace.on_decision(decision, seconds)
    return decision
