"""A real Prometheus scrapes a real server, and every query of the dashboard is asked. Run by `make check-stack`."""

import math
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.model.base import load_base
from server.model.chat import ChatFormat
from tests.docker.files import dashboard, panels
from tests.docker.prometheus import PROGRAM, Prometheus
from tests.docker.promql import fill_variables
from tests.support import tiny
from tests.support.server import RelayServer
from tests.support.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PROGRAM is None, reason="prometheus is not installed (Debian package `prometheus`)"),
]

NAMES_WE_KEEP = ("vllm:lora_requests_info ",)  # the name vLLM's gauge bears
ROUNDS = 6
LOOK_BACK_SECONDS = 60
# One slot and two places: experts evict each other, and the third request at a time is turned away.
FLAGS = (
    *("--dtype", "fp32", "--no-demo", "--kv-memory", "64MiB", "--chain-window", "1", "--plain-window", "1"),
    *("--max-rank", "8", "--expert-slots", "1", "--max-running", "2", "--max-queue", "0"),
)

ASKED = [(panel, target) for panel in panels() for target in panel["targets"]]
EVERY_QUERY = pytest.mark.parametrize(
    ("panel", "target"), ASKED, ids=[f"{panel['title']} / {target['legendFormat']}" for panel, target in ASKED]
)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Has watched a server through a bit of everything."""
    root = tmp_path_factory.mktemp("stack")
    base = tiny.write_base(root / "base")
    chat = ChatFormat(load_base(str(base), dtype="fp32", device="cpu", cache=root).tokenizer)
    adapters = {
        name: tiny.write_adapter(root / name, base, kind="alora", invocation=chat.generation_prompt, seed=seed)
        for seed, name in enumerate(("shy", "keen"))
    }
    (root / "prometheus").mkdir()
    with (
        RelayServer(store=root / "store", base=str(base), log=root / "log", flags=FLAGS) as server,
        Prometheus(root / "prometheus", server_url=server.url) as watching,
    ):
        for _ in range(ROUNDS):
            _a_bit_of_everything(server, adapters)
            time.sleep(1)
        ended = time.time()
        scraped_since = f'timestamp(up{{job="lora-relay"}}) > {ended}'
        until(lambda: watching.query(scraped_since) != [])
        yield watching


def _a_bit_of_everything(server: RelayServer, adapters: dict[str, Path]) -> None:
    """Every kind of decision, ending and registration that a panel shows."""
    for name, threshold in (("shy", 0.999999), ("keen", 0.000001)):
        manifest = {"indicators": {"accept": "<<pos>>", "reject": "<<neg>>"}, "threshold": threshold}
        server.register(adapters[name], name, manifest)
    short = {"prompt": "the quick brown fox", "max_new_tokens": 6, "min_new_tokens": 6}
    server.put("/chain", {"order": ["shy", "keen"]})
    server.post("/generate", short)
    server.put("/chain", {"order": ["shy"]})
    server.post("/generate", short)
    server.post("/generate", {**short, "fallback": "refuse"})
    server.post("/generate", {**short, "expert": "keen"})
    server.post("/generate", {**short, "router": "none", "shadow": ["chain"]})
    server.post("/route", {"prompt": "whose is this?", "shortlist": 1})
    unknown = server.client.post(f"{server.url}/generate", json={**short, "expert": "nobody"})
    assert unknown.status_code == 404
    pickled = server.client.post(f"{server.url}/experts", data={"name": "bad"}, files={"adapter_model": b"pickle"})
    assert pickled.status_code == 422
    _crowd(server)


def _crowd(server: RelayServer) -> None:
    """More requests at a time than there are places; two long ones are surely still running when the others come."""
    body = {"prompt": "the lazy dog", "router": "none", "max_new_tokens": 400, "min_new_tokens": 400}
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: server.client.post(f"{server.url}/generate", json=body), range(8))
        statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}


def _answer(prometheus: Prometheus, target: dict[str, Any]) -> list[dict[str, Any]]:
    """The series, asked the way Grafana does for this target."""
    expression = fill_variables(target["expr"], rate_interval="10s", range_=f"{LOOK_BACK_SECONDS}s")
    if target["instant"]:
        return prometheus.query(expression)
    return prometheus.query_range(expression, seconds=LOOK_BACK_SECONDS)


@EVERY_QUERY
def test_a_query_of_the_dashboard_has_an_answer(
    prometheus: Prometheus, panel: dict[str, Any], target: dict[str, Any]
) -> None:
    series = _answer(prometheus, target)
    values = [float(value) for one in series for _, value in one.get("values") or [one["value"]]]
    assert any(math.isfinite(value) for value in values), f"{panel['title']}: {target['expr']} has no data"
    shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    assert all(shown <= set(one["metric"]) for one in series), "the legend names a label that the series lack"


def test_the_numbers_are_those_of_what_was_asked(prometheus: Prometheus) -> None:
    decisions = prometheus.query("sum by (router, reason, expert) (lora_relay_routing_decisions_total)")
    counted = {
        (one["metric"]["router"], one["metric"]["reason"], one["metric"]["expert"]): float(one["value"][1])
        for one in decisions
    }
    assert counted["chain", "accepted", "keen"] == ROUNDS
    assert counted["chain", "no_acceptance", "(base)"] == 3 * ROUNDS  # answered, refused, dry run
    fallbacks = {
        one["metric"]["action"]: float(one["value"][1])
        for one in prometheus.query("sum by (action) (lora_relay_fallbacks_total)")
    }
    assert fallbacks == {"base": 2 * ROUNDS, "refuse": ROUNDS}


def test_the_annotation_and_the_expert_list_find_something(prometheus: Prometheus) -> None:
    (annotation,) = dashboard()["annotations"]["list"]
    assert prometheus.query_range(annotation["expr"], seconds=LOOK_BACK_SECONDS)
    (variable,) = dashboard()["templating"]["list"]
    selector = re.fullmatch(r"label_values\((\{.*\}), expert\)", variable["definition"])
    assert selector is not None
    found = {one["metric"].get("expert") for one in prometheus.query(selector[1])}
    assert found == {"shy", "keen", "(base)"}


def test_prometheus_own_linter_accepts_the_names_and_help_texts(prometheus: Prometheus) -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=prometheus.scrape(), capture_output=True, timeout=60)
    complaints = (done.stdout + done.stderr).decode().splitlines()
    assert [line for line in complaints if not line.startswith(NAMES_WE_KEEP)] == []
