"""The dashboard asks only for what server/metrics.py declares, asks for all of it, and explains itself."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import pytest

from expert_store import Catalog, Expert
from server.engine.types import PoolEvent
from server.metrics import Metrics, RequestRecord
from server.routing.base import Considered, Decision, Shadow, Shortlist
from tests.docker.files import dashboard, datasource, panels
from tests.docker.promql import Names, fill_variables, names
from tests.support.catalogs import make_version

# Made by Prometheus itself: whether a target could be scraped.
SCRAPE_METRICS = {"up": frozenset({"job", "instance"})}
# For schedulers that route by residency: its labels are lists of names, which no panel can show.
NOT_SHOWN = {"vllm:lora_requests_info"}

SHORTLIST = Shortlist(experts=(), size=1, num_unprofiled=0, num_unfamiliar=0, num_chain=1, seconds=0.001)
EVERY_PANEL = pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])


def _samples() -> Mapping[str, frozenset[str]]:
    """Every sample name the server can expose, with its labels: metrics that have seen one of everything."""
    version = make_version("dates")
    catalog = Catalog(1, {"dates": Expert("dates", {1: version}, {"live": 1})}, ("dates",))
    metrics = Metrics(catalog=lambda: catalog, max_experts=1)
    considered = (Considered("dates", 1, 0.9, True),)
    shadow = Shadow("learned", 0.01, Decision("learned", version, None, False, "weighted", (), 1))
    decision = Decision("chain", version, 0.9, True, "accepted", considered, 1, SHORTLIST, (shadow,))
    metrics.on_request(
        RequestRecord(
            request_id="generate-1",
            endpoint="generate",
            outcome="stop",
            total_seconds=1.0,
            decision=decision,
            queue_seconds=0.1,
            routing_seconds=0.1,
            first_token_seconds=0.3,
        )
    )
    metrics.on_token(0.1)
    metrics.on_error("too_busy")
    metrics.on_registration("registered")
    metrics.on_pool_event(PoolEvent("load", "dates@1", 0.1, "disk"))
    metrics.on_pool_event(PoolEvent("evict", "dates@1", 0.1))
    metrics.build.labels("0.1.0", "bundled", "sha256:0", "bf16").set(1)
    samples = itertools.chain.from_iterable(family.samples for family in metrics.registry.collect())
    return {sample.name: frozenset(sample.labels) for sample in samples if not sample.name.endswith("_created")}


SAMPLES = _samples()
KNOWN = {**SAMPLES, **SCRAPE_METRICS}


def _expressions() -> list[str]:
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    return asked + [annotation["expr"] for annotation in dashboard()["annotations"]["list"]]


def test_the_data_source_is_the_provisioned_one() -> None:
    uids = {target["datasource"]["uid"] for panel in panels() for target in [panel, *panel["targets"]]}
    uids |= {item["datasource"]["uid"] for item in dashboard()["annotations"]["list"]}
    uids |= {item["datasource"]["uid"] for item in dashboard()["templating"]["list"]}
    assert uids == {datasource()["uid"]}
    assert datasource()["type"] == "prometheus"


@pytest.mark.parametrize("expression", _expressions())
def test_an_expression_names_only_metrics_and_labels_that_exist(expression: str) -> None:
    used = names(fill_variables(expression, rate_interval="1m", range_="1h"))
    assert used.metrics
    assert used.metrics <= set(KNOWN), used.metrics - set(KNOWN)
    labels = frozenset().union(*(KNOWN[metric] for metric in used.metrics))
    assert used.labels <= labels, used.labels - labels


def test_the_expert_variable_reads_metrics_that_have_experts() -> None:
    (variable,) = dashboard()["templating"]["list"]
    assert variable["query"]["query"] == variable["definition"]
    read = re.findall(r"lora_relay_\w+", variable["definition"])
    assert read
    assert all("expert" in SAMPLES[metric] for metric in read)
    assert variable["definition"].endswith(", expert)")


def test_every_metric_of_the_server_is_on_the_dashboard() -> None:
    shown = {metric for expression in _expressions() for metric in names(expression).metrics}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in SAMPLES} - NOT_SHOWN
    assert families <= {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}


@EVERY_PANEL
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert all(target["legendFormat"] for target in panel["targets"])
    if panel["type"] == "timeseries":
        assert panel["options"]["legend"]["showLegend"] is True


@EVERY_PANEL
def test_a_legend_shows_labels_that_its_query_keeps(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        grouped = re.findall(r"\bby \(([^)]*)\)", target["expr"])
        kept = {label for group in grouped for label in re.findall(r"\w+", group)}
        if not grouped:
            kept = set().union(*(KNOWN[metric] for metric in names(target["expr"]).metrics))
        assert shown <= kept


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    everything = dashboard()["panels"]
    ids = [panel["id"] for panel in everything]
    assert len(set(ids)) == len(ids)
    cells: list[tuple[int, int]] = []
    for panel in everything:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells += itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
    assert len(set(cells)) == len(cells)


@EVERY_PANEL
def test_a_panels_queries_have_ids_of_their_own(panel: dict[str, Any]) -> None:
    ids = [target["refId"] for target in panel["targets"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("expression", "metrics", "labels"),
    [
        ('sum by (a, le) (rate(x_bucket{b="c", d=~"e|f"}[5m])) > 0', {"x_bucket"}, {"a", "le", "b", "d"}),
        ("(sum(x:y) or vector(0)) / (z > 1)", {"x:y", "z"}, set()),
        ("histogram_quantile(0.95, sum by (le) (rate(h_bucket[1m])))", {"h_bucket"}, {"le"}),
    ],
)
def test_names_of_an_expression(expression: str, metrics: set[str], labels: set[str]) -> None:
    assert names(expression) == Names(frozenset(metrics), frozenset(labels))
