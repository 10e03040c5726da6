"""Every Prometheus metric, declared once, in a registry of its own. Knows no HTTP and decides nothing.

Label values are bounded: experts are named only while the catalog names them, and `forget` drops a deleted expert's
series. Observer methods are called on the engine thread; the client library locks for us.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from expert_store import Catalog
from server.engine.types import Occupancy, PoolEvent, StepStats
from server.routing.base import Decision, Shadow, Shortlist

# Outside the pattern of expert names, so none of them can be one.
BASE = "(base)"
MIXTURE = "(mixture)"
OTHER = "(other)"

Endpoint = Literal["generate", "route", "completions", "chat_completions"]
Outcome = Literal["stop", "length", "refused", "routed", "invalid", "busy", "error", "disconnected"]
RegistrationOutcome = Literal["registered", "refused", "busy", "error"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LOOKUP_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, kw_only=True)
class RequestRecord:
    """What is kept of one request when it ends, whichever way it ended. Times are seconds from its arrival."""

    request_id: str
    endpoint: Endpoint
    outcome: Outcome
    total_seconds: float
    error: str | None = None
    decision: Decision | None = None
    refused: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    computed_tokens: int = 0
    queue_seconds: float | None = None
    routing_seconds: float | None = None
    first_token_seconds: float | None = None


@dataclass(frozen=True)
class LoadedExperts:
    """Which experts requests are using now and which they wait for, by name."""

    running: frozenset[str]
    waiting: frozenset[str]


class Metrics:
    """Owns the registry. `catalog` is asked at every scrape and whenever an expert is named."""

    def __init__(self, *, catalog: Callable[[], Catalog], max_experts: int) -> None:
        self.registry = CollectorRegistry()
        self._catalog = catalog
        self._declare_requests()
        self._declare_routing()
        self._declare_engine()
        self._declare_pool()
        self._declare_catalog()
        self._affinity = _AffinityGauge(max_experts)
        self.registry.register(self._affinity)

    def _declare_requests(self) -> None:
        self.requests = self._counter("requests", "Requests by way of ending.", "endpoint", "outcome")
        self.errors = self._counter("errors", "Error answers by the code in their body.", "code")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, by who answered.", "expert")
        self.completion_tokens = self._counter("completion_tokens", "Tokens generated, by who answered.", "expert")
        self.computed_tokens = self._counter("computed_tokens", "Tokens run through the model for requests.")
        self.running = self._gauge("requests_running", "Requests the engine is working on.")
        self.waiting = self._gauge("requests_waiting", "Admitted requests that wait for KV memory or their turn.")
        self.request_seconds = self._histogram("request_seconds", "Arrival to end of a request.", _SECONDS, "endpoint")
        self.stage_seconds = self._histogram(
            "stage_seconds", "Time in one stage: queue, routing or generation.", _SECONDS, "stage"
        )
        self.first_token_seconds = self._histogram("time_to_first_token_seconds", "Arrival to first token.", _SECONDS)
        self.inter_token_seconds = self._histogram(
            "inter_token_seconds", "Time between two tokens of an answer.", _STEP_SECONDS
        )

    def _declare_routing(self) -> None:
        self.decisions = self._counter(
            "routing_decisions",
            "Decisions by router, outcome and chosen expert.",
            "router",
            "reason",
            "expert",
        )
        self.verdicts = self._counter(
            "expert_verdicts", "Accepts, rejects and failures of experts the chain asked.", "expert", "verdict"
        )
        self.shortlisted = self._counter(
            "shortlist_experts", "Experts of the chain by what shortlists and guards made of them.", "outcome"
        )
        self.shortlist_seconds = self._histogram(
            "shortlist_seconds", "Time to choose whom of the chain to ask.", _LOOKUP_SECONDS
        )
        self.chain_length = self._histogram("chain_length", "Experts asked by one chain decision.", _COUNTS)
        self.router_seconds = self._histogram(
            "router_seconds", "Time a router took to decide, or to score as a shadow.", _SECONDS, "router"
        )
        self.router_agreements = self._counter(
            "router_agreements",
            "Shadow decisions by whether their leading expert is the one that answered.",
            "router",
            "shadow",
            "agreed",
        )
        self.fallbacks = self._counter(
            "fallbacks", "Requests nobody took, by reason and by what was done.", "reason", "action"
        )

    def _declare_engine(self) -> None:
        self.step_seconds = self._histogram("step_seconds", "Time of one engine step.", _STEP_SECONDS)
        self.step_tokens = self._histogram("step_tokens", "Tokens computed in one step.", _TOKENS)
        self.step_sequences = self._histogram("step_sequences", "Sequences in one step (batch size).", _COUNTS)
        self.step_experts = self._histogram("step_experts", "Distinct experts in one step.", (0, *_COUNTS))
        self.prefix_tokens_reused = self._counter(
            "prefix_tokens_reused", "Prompt tokens found in the prefix cache instead of computed."
        )
        self.kv_blocks_used = self._gauge("kv_blocks_used", "KV blocks in use now.")
        self.kv_blocks_reserved = self._gauge("kv_blocks_reserved", "KV blocks that requests in work may come to use.")
        self.kv_blocks_total = self._gauge("kv_blocks", "KV blocks there are.")

    def _declare_pool(self) -> None:
        self.slots_used = self._gauge("expert_slots_used", "Expert slots in use now.")
        self.slots_total = self._gauge("expert_slots", "Expert slots there are.")
        self.host_bytes_used = self._gauge("expert_memory_used_bytes", "Bytes of the host cache in use now.")
        self.host_bytes_total = self._gauge("expert_memory_bytes", "Bytes the host cache may use.")
        self.loads = self._counter(
            "expert_loads", "Loads of an expert into slots, by where its bytes came from.", "expert", "source"
        )
        self.evictions = self._counter("expert_evictions", "Evictions of an expert from its slots.", "expert")
        self.load_seconds = self._histogram(
            "expert_load_seconds", "Time to load an expert, by where its bytes came from.", _STEP_SECONDS, "source"
        )

    def _declare_catalog(self) -> None:
        self.registrations = self._counter("registrations", "Registrations by outcome.", "outcome")
        generation = self._gauge("catalog_generation", "Generation of the current catalog.")
        generation.set_function(lambda: self._catalog().generation)
        experts = self._gauge("catalog_experts", "Experts in the current catalog.")
        experts.set_function(lambda: len(self._catalog().experts))
        chain = self._gauge("catalog_chain_experts", "Experts the chain would ask now.")
        chain.set_function(lambda: len(self._catalog().chain_experts))
        self.build = self._gauge("build_info", "Always 1.", "version", "base", "fingerprint", "dtype")

    # What happened, in the order in which it does.

    def on_token(self, seconds_since_last: float) -> None:
        self.inter_token_seconds.observe(seconds_since_last)

    def on_request(self, record: RequestRecord) -> None:
        """Counts a request, once, at its end."""
        self.requests.labels(record.endpoint, record.outcome).inc()
        self.request_seconds.labels(record.endpoint).observe(record.total_seconds)
        self.computed_tokens.inc(record.computed_tokens)
        self._observe_stages(record)
        if record.decision is not None:
            answered_by = self._answered_by(record.decision)
            self.prompt_tokens.labels(answered_by).inc(record.prompt_tokens)
            self.completion_tokens.labels(answered_by).inc(record.completion_tokens)
            self._count_decision(record.decision, refused=record.refused)
            self._observe_routers(record.decision, record.routing_seconds)

    def on_error(self, code: str) -> None:
        self.errors.labels(code).inc()

    def on_registration(self, outcome: RegistrationOutcome) -> None:
        self.registrations.labels(outcome).inc()

    def on_activity(self, num_waiting: int, num_running: int, experts: LoadedExperts) -> None:
        self.waiting.set(num_waiting)
        self.running.set(num_running)
        self._affinity.experts = experts

    def on_step(self, stats: StepStats) -> None:
        self.step_seconds.observe(stats.seconds)
        self.step_tokens.observe(stats.tokens)
        self.step_sequences.observe(stats.sequences)
        self.step_experts.observe(stats.experts)
        self.prefix_tokens_reused.inc(stats.reused)

    def on_occupancy(self, occupancy: Occupancy) -> None:
        self.kv_blocks_used.set(occupancy.kv_blocks_used)
        self.kv_blocks_reserved.set(occupancy.kv_blocks_reserved)
        self.kv_blocks_total.set(occupancy.kv_blocks_total)
        self.slots_used.set(occupancy.slots_used)
        self.slots_total.set(occupancy.slots_total)
        self.host_bytes_used.set(occupancy.host_bytes_used)
        self.host_bytes_total.set(occupancy.host_bytes_total)

    def on_pool_event(self, event: PoolEvent) -> None:
        name = self._label(event.ref.partition("@")[0])
        if event.source is not None:
            self.loads.labels(name, event.source).inc()
            self.load_seconds.labels(event.source).observe(event.seconds)
        else:
            self.evictions.labels(name).inc()

    def forget(self, expert: str) -> None:
        """Drops the series of an expert that has left the catalog."""
        for metric in (
            self.prompt_tokens,
            self.completion_tokens,
            self.decisions,
            self.verdicts,
            self.loads,
            self.evictions,
        ):
            metric.remove_by_labels({"expert": expert})

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The scrape's body and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _observe_stages(self, record: RequestRecord) -> None:
        if record.queue_seconds is not None:
            self.stage_seconds.labels("queue").observe(record.queue_seconds)
        if record.routing_seconds is not None:
            self.stage_seconds.labels("routing").observe(record.routing_seconds)
        if record.first_token_seconds is not None:
            self.first_token_seconds.observe(record.first_token_seconds)
            before = (record.queue_seconds or 0.0) + (record.routing_seconds or 0.0)
            self.stage_seconds.labels("generation").observe(max(0.0, record.total_seconds - before))

    def _count_decision(self, decision: Decision, *, refused: bool) -> None:
        self.decisions.labels(decision.router, decision.reason, self._answered_by(decision)).inc()
        if decision.router == "chain" and decision.is_routed:
            for considered in decision.considered:
                verdict = "fail" if considered.problem else "accept" if considered.accepted else "reject"
                self.verdicts.labels(self._label(considered.expert), verdict).inc()
            self.chain_length.observe(sum(c.problem is None for c in decision.considered))
        if decision.shortlist is not None:
            self._count_shortlist(decision.shortlist)
        if decision.fallback:
            action = "refuse" if refused else "base" if decision.expert is None else "expert"
            self.fallbacks.labels(decision.reason, action).inc()

    def _observe_routers(self, decision: Decision, seconds: float | None) -> None:
        if decision.is_routed and seconds is not None:
            self.router_seconds.labels(decision.router).observe(seconds)
        used = "(pinned)" if decision.reason == "pinned" else decision.router
        for shadow in decision.shadows:
            if shadow.decision is not None:
                self.router_seconds.labels(shadow.router).observe(shadow.seconds)
            self.router_agreements.labels(used, shadow.router, _agreed(decision, shadow)).inc()

    def _count_shortlist(self, shortlist: Shortlist) -> None:
        self.shortlist_seconds.observe(shortlist.seconds)
        self.shortlisted.labels("proposed").inc(shortlist.num_proposed)
        self.shortlisted.labels("unprofiled").inc(shortlist.num_unprofiled)
        self.shortlisted.labels("unfamiliar").inc(shortlist.num_unfamiliar)
        self.shortlisted.labels("left_out").inc(shortlist.num_left_out)

    def _answered_by(self, decision: Decision) -> str:
        if decision.expert is not None:
            return self._label(decision.expert.name)
        return MIXTURE if decision.shares else BASE

    def _label(self, expert: str) -> str:
        return expert if expert in self._catalog().experts else OTHER

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"lora_relay_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"lora_relay_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(f"lora_relay_{name}", text, labels, buckets=tuple(buckets), registry=self.registry)


def _agreed(decision: Decision, shadow: Shadow) -> str:
    if shadow.decision is None:
        return "unscored"
    return "yes" if shadow.decision.leader == decision.leader else "no"


class _AffinityGauge(Collector):
    """vLLM's gauge, which Gateway API Inference Extension and llm-d read: names in labels, the time as the value."""

    def __init__(self, max_experts: int) -> None:
        self._max_experts = max_experts
        self.experts = LoadedExperts(frozenset(), frozenset())

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Experts that requests run on and wait for, under vLLM's name.",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        running, waiting = (",".join(sorted(names)) for names in (self.experts.running, self.experts.waiting))
        family.add_metric([str(self._max_experts), running, waiting], time.time())
        yield family
