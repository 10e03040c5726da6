"""Whatever is sent, the answer is a clear 4xx in OpenAI's shape, and never a 500."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api import errors
from server.api.openai_schemas import ChatCompletionRequest, CompletionRequest
from server.api.request_schemas import GenerateRequest
from tests.api.conftest import App, Start, running_app

pytestmark = pytest.mark.anyio
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
async def world(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    """One application for all: nothing here may change it."""
    async with running_app(base_folder, tmp_path_factory.mktemp("bad-input")) as running:
        yield running
        assert running.store.catalog.generation == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": ""}] * 1025}, "messages"),
        ({"prompt": "x", "temperature": -0.1}, "temperature"),
        ({"prompt": "x", "temperature": 2.1}, "temperature"),
        ({"prompt": "x", "temperature": "1"}, "temperature"),
        ({"prompt": "x", "temperature": True}, "temperature"),
        ({"prompt": "x", "top_p": 0}, "top_p"),
        ({"prompt": "x", "top_p": 1.01}, "top_p"),
        ({"prompt": "x", "top_k": -1}, "top_k"),
        ({"prompt": "x", "top_k": 10**9}, "top_k"),
        ({"prompt": "x", "top_k": 1.5}, "top_k"),
        ({"prompt": "x", "min_p": 1.5}, "min_p"),
        ({"prompt": "x", "repetition_penalty": 0}, "repetition_penalty"),
        ({"prompt": "x", "repetition_penalty": 11}, "repetition_penalty"),
        ({"prompt": "x", "presence_penalty": -2.5}, "presence_penalty"),
        ({"prompt": "x", "seed": -1}, "seed"),
        ({"prompt": "x", "seed": 2**63}, "seed"),
        ({"prompt": "x", "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompt": "x", "max_new_tokens": -5}, "max_new_tokens"),
        ({"prompt": "x", "max_new_tokens": 10**30}, "max_new_tokens"),
        ({"prompt": "x", "max_new_tokens": 5000}, "max_new_tokens"),
        ({"prompt": "x", "min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens"),
        ({"prompt": "x", "stop": ["a"] * 17}, "stop"),
        ({"prompt": "x", "stop": ["a" * 257]}, "stop.0"),
        ({"prompt": "x", "stop": [""]}, "stop.0"),
        ({"prompt": "x", "stop": 3}, "stop"),
        ({"prompt": "x", "router": "magic"}, "router"),
        ({"prompt": "x", "fallback": "maybe"}, "fallback"),
        ({"prompt": "x", "stream": "yes"}, "stream"),
        ({"prompt": "x", "expert": "x" * 500}, "expert"),
        ({"prompt": "x", "n": 1}, "n"),
        ({"query": "x"}, "query"),
        ({"prompt": "x", "body": 1}, "body"),
    ],
)
async def test_a_bad_generate_request_names_its_field(world: App, body: dict[str, Any], param: str) -> None:
    reply = await world.ask("POST", "/generate", body)
    error = reply.json()["error"]
    assert (reply.status, error["param"]) == (422, param), error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert world.engine.num_open == 0


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1", "1e308"])
@pytest.mark.parametrize("field", ["temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty"])
async def test_numbers_that_are_none_are_refused(world: App, field: str, number: str) -> None:
    chunks = [f'{{"prompt": "x", "{field}": {number}}}'.encode()]
    reply = await world.ask("POST", "/generate", chunks=chunks, headers=JSON)
    assert (reply.status, reply.json()["error"]["param"]) == (422, field)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"\xff\xfe", b"[" * 100_000, b'{"prompt": "\\ud800"}', b'{"seed": ' + b"1" * 9000 + b"}"],
)
async def test_what_is_no_json_is_refused(world: App, body: bytes) -> None:
    for path in ("/generate", "/route", "/v1/completions", "/v1/chat/completions"):
        reply = await world.ask("POST", path, chunks=[body], headers=JSON)
        assert (reply.status, reply.json()["error"]["code"]) == (400, "invalid_json")


async def test_another_content_type_is_refused(world: App) -> None:
    reply = await world.ask("POST", "/generate", chunks=[b'{"prompt": "x"}'], headers={"content-type": "text/plain"})
    assert (reply.status, reply.json()["error"]["code"]) == (415, "unsupported_media_type")
    charset = {"content-type": "application/json; charset=utf-8"}
    assert (await world.ask("POST", "/route", chunks=[b'{"prompt": "x"}'], headers=charset)).status == 200


async def test_a_body_over_the_cap_is_413_by_header_and_by_count(start: Start) -> None:
    async with start(max_body_bytes=1024) as world:
        body = json.dumps({"prompt": "x" * 2000}).encode()
        for headers in (JSON, {**JSON, "content-length": str(len(body))}):
            reply = await world.ask("POST", "/generate", chunks=[body[:900], body[900:]], headers=headers)
            assert (reply.status, reply.json()["error"]["code"]) == (413, "body_too_large")
        assert "1024" in reply.json()["error"]["message"]


async def test_a_prompt_over_the_context_is_422_with_both_numbers(world: App) -> None:
    reply = await world.ask("POST", "/generate", {"prompt": "hello " * 400, "max_new_tokens": 5})
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (422, "context_length_exceeded", "prompt")
    assert "512" in error["message"]
    assert world.engine.num_open == 0


@pytest.mark.parametrize("expert", ["nobody", "sql@1", "sql@", "@", "SQL", "../x", "sql@live@1", "sql@99999999999999"])
async def test_an_unknown_expert_is_404(world: App, expert: str) -> None:
    for path in ("/generate", "/route"):
        reply = await world.ask("POST", path, {"prompt": "x", "expert": expert})
        assert (reply.status, reply.json()["error"]["param"]) == (404, "expert")


async def test_a_part_of_the_path_is_named_without_where_it_was_sent(world: App) -> None:
    for method, path in (("GET", "/experts/sql/versions/x"), ("DELETE", "/experts/sql/versions/x")):
        reply = await world.ask(method, path)
        assert (reply.status, reply.json()["error"]["param"]) == (422, "version")


async def test_unknown_routes_and_methods_have_the_same_shape(world: App) -> None:
    reply = await world.ask("GET", "/nowhere")
    assert (reply.status, reply.json()["error"]["code"]) == (404, "unknown_route")
    assert reply.json()["error"]["message"] == "GET /nowhere is not served here: see /docs"
    reply = await world.ask("DELETE", "/generate")
    assert reply.json()["error"]["message"] == "DELETE /generate is not served here: see /docs"
    assert (reply.status, reply.json()["error"]["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"
    assert (await world.ask("DELETE", "/chain")).headers["allow"] == "GET, PUT"
    assert (await world.ask("GET", "/experts/sql/aliases/live")).headers["allow"] == "DELETE, PUT"


async def test_a_body_with_a_mistake_in_each_of_many_items_holds_nobody_up(
    world: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a million problems would take seconds to describe, of which one is told."""
    described: list[int] = []
    first_problem = errors._first_problem

    def counted(problems: Sequence[Any], **options: Any) -> errors.ApiError:
        described.append(len(problems))
        return first_problem(problems, **options)

    monkeypatch.setattr(errors, "_first_problem", counted)
    for method, path, field in (("POST", "/generate", "messages"), ("PUT", "/chain", "order")):
        reply = await world.ask(method, path, {field: [1] * 300_000})
        assert (reply.status, reply.json()["error"]["param"]) == (422, f"{field}.0")
    reply = await world.ask("POST", "/v1/completions", {"model": "m", "prompt": "x", "logit_bias": {"a": "b"}})
    assert (reply.status, reply.json()["error"]["param"]) == (422, "logit_bias")
    assert len(described) == 3
    assert max(described) <= 2, "the first item's, and that no item is left, are all that pydantic may look for"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        *GenerateRequest.model_fields,
        *CompletionRequest.model_fields,
        *ChatCompletionRequest.model_fields,
        "order",
        "version",
        "generation",
        "x",
    ]
)
BODIES = st.dictionaries(FIELDS, VALUES, max_size=4) | VALUES
PATHS = st.sampled_from(
    [
        ("POST", "/generate"),
        ("POST", "/route"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/experts"),
        ("PUT", "/chain"),
        ("PUT", "/experts/sql/aliases/live"),
    ]
)


async def test_no_body_makes_the_server_fail(world: App) -> None:
    """Bodies of every shape, straight at every route that reads one."""
    replies: list[tuple[str, Any]] = []

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(route=PATHS, body=BODIES, broken=st.booleans())
    def collect(route: tuple[str, str], body: Any, broken: bool) -> None:
        text = json.dumps(body).encode("utf-8", "surrogatepass")
        replies.append((f"{route[0]} {route[1]}", text[: len(text) // 2] if broken else text))

    collect()
    for route, text in replies:
        method, _, path = route.partition(" ")
        reply = await world.ask(method, path, chunks=[text], headers=JSON)
        assert reply.status is not None
        assert reply.status < 500, (route, text, reply.body)
        if reply.status >= 400:
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


async def test_every_route_survives_rubbish(world: App) -> None:
    rubbish = [b"", b"\x00\xff", b"[]", b'"x"', b"{}", b'{"a": NaN}', b"--x\r\n"]
    types = ["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/\xff", ""]
    for path, operations in world.app.openapi()["paths"].items():
        filled = path.format(name="%00", alias="é", version="1e9", model="%00")
        for method in operations:
            for body in rubbish:
                for content_type in types:
                    headers = {"content-type": content_type.encode("latin-1").decode("latin-1")}
                    reply = await world.ask(method.upper(), filled, chunks=[body], headers=headers)
                    assert reply.status is not None
                    assert reply.status < 500, (method, path, body, content_type, reply.body)
