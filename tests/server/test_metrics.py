"""What is counted, and that labels stay bounded."""

from types import MappingProxyType

from expert_store import Catalog, Expert
from server.engine import Occupancy, PoolEvent, StepStats
from server.metrics import BASE, OTHER, LoadedExperts, Metrics, RequestRecord
from server.routing import Considered, Decision, Shortlist
from tests.support.catalogs import make_version

SQL = make_version("sql")
CATALOG = Catalog(
    generation=7,
    experts=MappingProxyType({"sql": Expert("sql", {1: SQL}, {"live": 1})}),
    chain=("sql",),
)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"lora_relay_{name}", labels)


def record(decision: Decision | None, **changes: object) -> RequestRecord:
    values = {"prompt_tokens": 10, "completion_tokens": 5, "computed_tokens": 16, "total_seconds": 0.5, **changes}
    return RequestRecord(request_id="x", endpoint="generate", outcome="stop", decision=decision, **values)


def new_metrics(catalog: Catalog = CATALOG) -> Metrics:
    return Metrics(catalog=lambda: catalog, max_experts=4)


def test_an_accepted_request_counts_for_its_expert() -> None:
    metrics = new_metrics()
    asked = (Considered("dates", 1, 0.1, False), Considered("sql", 1, 0.9, True))
    decision = Decision("chain", SQL, 0.9, False, "accepted", asked, 7)
    metrics.on_request(record(decision, queue_seconds=0.1, routing_seconds=0.1, first_token_seconds=0.3))
    assert value(metrics, "completion_tokens_total", expert="sql") == 5
    assert value(metrics, "routing_decisions_total", router="chain", reason="accepted", expert="sql") == 1
    assert value(metrics, "expert_verdicts_total", expert="sql", verdict="accept") == 1
    assert value(metrics, "expert_verdicts_total", expert=OTHER, verdict="reject") == 1
    assert value(metrics, "chain_length_sum") == 2
    assert value(metrics, "stage_seconds_sum", stage="generation") == 0.3
    assert value(metrics, "time_to_first_token_seconds_count") == 1


def test_a_shortlist_counts_the_experts_of_the_chain_by_what_it_made_of_them() -> None:
    metrics = new_metrics()
    shortlist = Shortlist(
        experts=(SQL, SQL, SQL), size=2, num_unprofiled=1, num_unfamiliar=3, num_chain=10, seconds=0.002
    )
    metrics.on_request(record(Decision("chain", SQL, 0.9, False, "accepted", (), 7, shortlist)))
    for outcome, count in (("proposed", 2), ("unprofiled", 1), ("unfamiliar", 3), ("left_out", 4)):
        assert value(metrics, "shortlist_experts_total", outcome=outcome) == count
    assert value(metrics, "shortlist_seconds_sum") == 0.002


def test_a_fallback_counts_by_reason_and_by_what_was_done() -> None:
    metrics = new_metrics()
    decision = Decision("chain", None, None, True, "no_acceptance", (), 7)
    metrics.on_request(record(decision))
    metrics.on_request(record(decision, refused=True))
    assert value(metrics, "fallbacks_total", reason="no_acceptance", action="base") == 1
    assert value(metrics, "fallbacks_total", reason="no_acceptance", action="refuse") == 1
    assert value(metrics, "completion_tokens_total", expert=BASE) == 10
    metrics.on_request(record(Decision("chain", SQL, None, True, "no_acceptance", (), 7)))
    assert value(metrics, "fallbacks_total", reason="no_acceptance", action="expert") == 1
    assert value(metrics, "completion_tokens_total", expert="sql") == 5


def test_only_the_chain_has_a_length() -> None:
    metrics = new_metrics()
    metrics.on_request(record(Decision("learned", None, None, True, "no_acceptance", (), 7)))
    metrics.on_request(record(Decision("chain", SQL, None, False, "pinned", (), 7)))
    assert value(metrics, "chain_length_count") == 0
    metrics.on_request(record(Decision("chain", None, None, True, "no_acceptance", (), 7)))
    assert value(metrics, "chain_length_count") == 1


def test_a_request_without_a_decision_counts_no_tokens_for_anybody() -> None:
    metrics = new_metrics()
    metrics.on_request(record(None))
    assert value(metrics, "requests_total", endpoint="generate", outcome="stop") == 1
    assert value(metrics, "prompt_tokens_total", expert=BASE) is None


def test_steps_and_loads_are_observed() -> None:
    metrics = new_metrics()
    metrics.on_step(StepStats(0.02, 40, 8, 3, reused=32))
    metrics.on_occupancy(Occupancy(0, 8, 5, 7, 10, 2, 64, 100, 1000))
    metrics.on_pool_event(PoolEvent("load", "sql@1", 0.5, "disk"))
    metrics.on_pool_event(PoolEvent("evict", "sql@1", 0.0))
    metrics.on_pool_event(PoolEvent("load", "sql@1", 0.01, "host"))
    metrics.on_pool_event(PoolEvent("load", "stranger@1", 0.01, "host"))
    assert value(metrics, "step_sequences_sum") == 8
    assert value(metrics, "step_experts_sum") == 3
    assert value(metrics, "prefix_tokens_reused_total") == 32
    assert [value(metrics, f"kv_blocks{which}") for which in ("_used", "_reserved", "")] == [5, 7, 10]
    assert value(metrics, "expert_slots") == 64
    assert (value(metrics, "expert_memory_used_bytes"), value(metrics, "expert_memory_bytes")) == (100, 1000)
    assert value(metrics, "expert_loads_total", expert="sql", source="disk") == 1
    assert value(metrics, "expert_loads_total", expert="sql", source="host") == 1
    assert value(metrics, "expert_loads_total", expert=OTHER, source="host") == 1
    assert value(metrics, "expert_load_seconds_sum", source="disk") == 0.5
    assert value(metrics, "expert_evictions_total", expert="sql") == 1


def test_a_deleted_expert_leaves_no_series() -> None:
    metrics = new_metrics()
    metrics.on_request(record(Decision("chain", SQL, 0.9, False, "accepted", (Considered("sql", 1, 0.9, True),), 7)))
    metrics.on_pool_event(PoolEvent("load", "sql@1", 0.01, "disk"))
    metrics.forget("sql")
    assert b'expert="sql"' not in metrics.exposition("")[0]


def test_the_catalog_is_read_at_the_scrape() -> None:
    metrics = new_metrics()
    assert value(metrics, "catalog_generation") == 7
    assert value(metrics, "catalog_experts") == 1
    assert value(metrics, "catalog_chain_experts") == 1


def test_vllms_gauge_names_running_and_waiting_experts() -> None:
    metrics = new_metrics()
    metrics.on_activity(2, 3, LoadedExperts(running=frozenset({"sql", "dates"}), waiting=frozenset({"logs"})))
    labels = {"max_lora": "4", "running_lora_adapters": "dates,sql", "waiting_lora_adapters": "logs"}
    stamp = metrics.registry.get_sample_value("vllm:lora_requests_info", labels)
    assert stamp is not None
    assert stamp > 1e9
    assert (value(metrics, "requests_waiting"), value(metrics, "requests_running")) == (2, 3)
