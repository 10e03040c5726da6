"""Health, metrics, the OpenAPI document and the way up and down."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from server.app import build_app
from server.errors import BaseModelError, ForeignStore
from server.settings import Settings
from tests.api.conftest import App, Start
from tests.support import asgi, tiny

pytestmark = pytest.mark.anyio


async def test_before_it_has_started_it_is_alive_but_not_ready(tmp_path: Path) -> None:
    app = build_app(Settings(base="no-such-folder", store=tmp_path))
    assert (await asgi.ask(app, "GET", "/livez")).status == 200
    for method, path in (("GET", "/readyz"), ("GET", "/metrics"), ("POST", "/generate"), ("GET", "/experts")):
        reply = await asgi.ask(app, method, path, json_body={"prompt": "x"})
        assert (reply.status, reply.json()["error"]["code"]) == (503, "not_ready")


async def test_a_running_server_is_alive_and_ready(world: App) -> None:
    assert (await world.ask("GET", "/livez")).json() == {"status": "ok"}
    assert (await world.ask("GET", "/readyz")).json() == {"status": "ok"}


async def test_when_it_has_stopped_it_is_not_ready(start: Start) -> None:
    async with start() as world:
        pass
    assert not world.engine.alive
    assert (await world.ask("GET", "/readyz")).status == 503


async def test_a_base_that_cannot_be_loaded_is_left_for_the_command_line(tmp_path: Path) -> None:
    app = build_app(Settings(base=str(tmp_path / "nope"), store=tmp_path / "store"))
    with pytest.raises(BaseModelError):
        async with asgi.running(app):
            pass
    assert isinstance(app.state.startup_error, BaseModelError)


async def test_a_store_of_another_base_is_refused(
    start: Start, alora: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with start() as world:
        await world.register(alora, "sql")
    other = tiny.write_base(tmp_path_factory.mktemp("other"), seed=1)
    with pytest.raises(ForeignStore, match="sql@1"):
        async with start(base=str(other)):
            pass


async def test_the_chat_template_can_be_replaced(start: Start, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ raise_exception('alternate, please') }}")
    async with start(chat_template=template) as world:
        reply = await world.ask("POST", "/route", {"prompt": "x"})
        assert (reply.status, reply.json()["error"]["param"]) == (422, "messages")
        assert "alternate, please" in reply.json()["error"]["message"]


async def test_a_template_that_refuses_a_lone_message_refuses_only_what_needs_one(
    start: Start, lora: Path, alora: Path, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ raise_exception('alternate, please') }}")
    async with start(chat_template=template) as world:
        assert (await world.register(lora, "plain", manifest="{}")).status == 201
        for folder, manifest, param in (
            (lora, '{"samples": ["How many users?"]}', "samples"),
            (alora, '{"indicators": {"accept": "<<pos>>", "reject": "<<neg>>"}}', "indicators"),
        ):
            reply = await world.register(folder, "other", manifest=manifest)
            error = reply.json()["error"]
            assert (reply.status, error["code"], error["param"]) == (422, "invalid_manifest", param)
            assert "alternate, please" in error["message"]


async def test_metrics_are_prometheus_text(world: App) -> None:
    await world.ask("POST", "/generate", {"prompt": "x"})
    reply = await world.ask("GET", "/metrics", headers={"accept": "text/plain;version=0.0.4"})
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain")
    assert await world.metric('lora_relay_requests_total{endpoint="generate",outcome="stop"}') == 1
    assert await world.metric("lora_relay_catalog_generation") == 0
    openmetrics = await world.ask("GET", "/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0"})
    assert openmetrics.body.endswith(b"# EOF\n")


async def test_every_request_is_recorded_exactly_once(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    for body in ({"prompt": "sql"}, {"prompt": "x"}, {"prompt": "x", "expert": "nobody"}, {"prompt": "x " * 900}):
        await world.ask("POST", "/generate", body)
    text = (await world.ask("GET", "/metrics")).body.decode()
    rows = [row for row in text.splitlines() if row.startswith("lora_relay_requests_total{")]
    assert {row.partition('outcome="')[2].partition('"')[0]: float(row.split()[-1]) for row in rows} == {
        "stop": 2,
        "invalid": 2,
    }
    assert await world.metric('lora_relay_expert_verdicts_total{expert="sql",verdict="accept"}') == 1
    assert await world.metric('lora_relay_expert_verdicts_total{expert="sql",verdict="reject"}') == 1
    assert await world.metric('lora_relay_errors_total{code="unknown_expert"}') == 1


async def test_the_document_describes_every_route_and_body(world: App) -> None:
    document = (await world.ask("GET", "/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert schemas["GenerateRequest"]["examples"]
    body = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/GenerateRequest"}
    assert "multipart/form-data" in document["paths"]["/experts"]["post"]["requestBody"]["content"]
    refs = {text.partition('"')[0] for text in json.dumps(document).split('"#/components/schemas/')[1:]}
    assert refs <= set(schemas)
    assert "HTTPValidationError" not in schemas
    for operations in document["paths"].values():
        for operation in operations.values():
            check_errors(operation)


async def test_a_template_that_wakes_experts_of_the_chain_no_more_is_told_at_the_start(
    start: Start, alora: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with start() as world:
        for name, adapter in (("asleep", alora), ("plain", lora)):
            assert (await world.register(adapter, name)).status == 201
    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}=>{% endif %}")
    capsys.readouterr()
    async with start(chat_template=template):
        told = [line for line in capsys.readouterr().out.splitlines() if "expert_never_woken" in line]
    assert ["asleep@1" in line for line in told] == [True]


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_the_interactive_pages_need_nothing_from_elsewhere(world: App, page: str) -> None:
    reply = await world.ask("GET", page)
    assert reply.status == 200
    text = reply.body.decode()
    assert "//" not in text
    sources = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert any(source.endswith(".js") for source in sources)
    for source in sources:
        assert (await world.ask("GET", source)).status == 200, source
    refused = await world.ask("POST", sources[0], {})
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")


def check_errors(operation: dict[str, Any]) -> None:
    shapes = [r for status, r in operation["responses"].items() if int(status) >= 400]
    assert shapes
    for shape in shapes:
        assert shape["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorResponse")
