"""`POST /v1/chat/completions`: OpenAI's shapes, rendered conversations, and what is not done here."""

from pathlib import Path
from typing import Any

import pytest

from server.errors import EngineStopped
from server.model.chat import ChatFormat
from server.model.sampling import Sampling
from tests.api.conftest import App
from tests.api.test_completions import TEXT, UNKNOWN_MODELS, chunks

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]


async def complete(world: App, **fields: Any) -> Any:
    reply = await world.ask("POST", PATH, {"model": "relay/chain", "messages": HELLO, "max_tokens": 100, **fields})
    assert reply.status == 200, reply.body
    return reply.json()


async def refusal(world: App, **fields: Any) -> tuple[int | None, str, str]:
    reply = await world.ask("POST", PATH, {"model": "relay/chain", "messages": HELLO, **fields})
    error = reply.json()["error"]
    return reply.status, error["code"], error["param"]


async def test_the_whole_answer_has_openais_shape(world: App, base_folder: Path) -> None:
    answer = await complete(world, model=base_folder.name)
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", base_folder.name)
    message = {"role": "assistant", "content": f" base: {TEXT}", "refusal": None}
    assert answer["choices"] == [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer["routing"] is None
    assert await world.metric('lora_relay_requests_total{endpoint="chat_completions",outcome="stop"}') == 1


async def test_the_conversation_is_rendered_as_for_generate(world: App, chat: ChatFormat) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "the fox"},
    ]
    await complete(world, messages=messages)
    assert world.engine.sessions[-1].prompt.tokens == chat.render(messages).tokens
    developer = [{**messages[0], "role": "developer", "name": "boss"}, *messages[1:]]
    await complete(world, messages=developer)
    assert world.engine.sessions[-1].prompt.tokens == chat.render(messages).tokens


async def test_text_may_come_in_parts(world: App, chat: ChatFormat) -> None:
    parts = [{"type": "text", "text": "the fox"}, {"type": "text", "text": "hello"}]
    await complete(world, messages=[{"role": "user", "content": parts}])
    expected = chat.render([{"role": "user", "content": "the fox\nhello"}])
    assert world.engine.sessions[-1].prompt.tokens == expected.tokens


async def test_an_answer_can_be_sent_back_as_it_came(world: App) -> None:
    message = (await complete(world))["choices"][0]["message"]
    more = {**message, "tool_calls": None, "function_call": None, "audio": None}
    await complete(world, messages=[*HELLO, more, *HELLO])


async def test_a_model_is_the_base_an_expert_or_a_router(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    for model in ("sql", "sql@1"):
        answer = await complete(world, model=model)
        assert (answer["model"], answer["routing"]) == (model, None)
        assert answer["choices"][0]["message"]["content"] == f"sql: {TEXT}"
    routed = await complete(world, messages=[{"role": "user", "content": "please do sql"}])
    assert (routed["routing"]["expert"], routed["routing"]["reason"]) == ("sql", "accepted")
    stranger = await complete(world, messages=[{"role": "user", "content": "something else"}])
    assert (stranger["routing"]["expert"], stranger["routing"]["reason"]) == (None, "no_acceptance")


@pytest.mark.parametrize("router", ["gradient", "learned"])
async def test_a_router_that_is_not_ready_is_told_and_not_listed(world: App, router: str) -> None:
    assert await refusal(world, model=f"relay/{router}") == (409, "router_not_ready", "model")
    listed = [card["id"] for card in (await world.ask("GET", "/v1/models")).json()["data"]]
    assert "relay/chain" in listed
    assert f"relay/{router}" not in listed
    shown = await world.ask("GET", f"/v1/models/relay/{router}")
    assert (shown.status, shown.json()["error"]["code"]) == (409, "router_not_ready")


async def test_the_stream_says_what_the_whole_answer_says(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    body = {"model": "relay/chain", "messages": [{"role": "user", "content": "please do sql"}], "max_tokens": 100}
    whole = await complete(world, **body)
    first, *texts, last = chunks(await world.ask("POST", PATH, {**body, "stream": True}))
    delta = {"role": "assistant", "content": ""}
    assert first["choices"] == [{"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}]
    assert {tuple(chunk["choices"][0]["delta"]) for chunk in texts} == {("content",)}
    streamed = "".join(chunk["choices"][0]["delta"]["content"] for chunk in texts)
    assert streamed == whole["choices"][0]["message"]["content"]
    assert {chunk["choices"][0]["finish_reason"] for chunk in texts} == {None}
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop", "logprobs": None}]
    assert last["routing"]["expert"] == "sql"
    assert {(c["id"], c["object"], c["model"], c["usage"]) for c in [first, *texts, last]} == {
        (last["id"], "chat.completion.chunk", "relay/chain", None)
    }


async def test_the_usage_comes_last_and_only_when_wanted(world: App) -> None:
    whole = await complete(world)
    body = {"model": "relay/chain", "messages": HELLO, "max_tokens": 100, "stream": True}
    *_, last = chunks(await world.ask("POST", PATH, {**body, "stream_options": {"include_usage": True}}))
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert chunks(await world.ask("POST", PATH, body))[-1]["choices"]


async def test_values_reach_the_engine_under_our_names(world: App) -> None:
    values = {"temperature": 1.0, "seed": 7, "ignore_eos": True, "presence_penalty": 0.5}
    for limits in (["max_tokens"], ["max_completion_tokens"], ["max_tokens", "max_completion_tokens"]):
        body = {
            "model": "relay/chain",
            "messages": HELLO,
            **dict.fromkeys(limits, 9),
            "min_tokens": 3,
            "top_k": -1,
            **values,
        }
        assert (await world.ask("POST", PATH, body)).status == 200
        assert world.engine.samplings[-1] == Sampling(max_new_tokens=9, min_new_tokens=3, **values)


async def test_without_a_limit_the_answer_may_fill_the_context(world: App, chat: ChatFormat) -> None:
    assert (await world.ask("POST", PATH, {"model": "relay/chain", "messages": HELLO})).status == 200
    context = world.engine.max_context
    room = context - len(chat.render(HELLO).tokens)
    assert world.engine.samplings[-1].max_new_tokens == room < world.settings.max_new_tokens
    long = [{"role": "user", "content": "a " * (context // 2 - 40)}]
    assert (await world.ask("POST", PATH, {"model": "relay/chain", "messages": long})).status == 200
    assert 0 < world.engine.samplings[-1].max_new_tokens < 128


async def test_what_asks_for_nothing_is_taken(world: App) -> None:
    nothing = {
        "n": 1,
        "frequency_penalty": 0,
        "logit_bias": {},
        "logprobs": False,
        "top_logprobs": 0,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "user": "somebody",
        "metadata": {"a": "b"},
        "store": False,
        "stop_token_ids": [],
        "skip_special_tokens": True,
        "add_special_tokens": False,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "echo": False,
        "functions": [],
        "function_call": "none",
        "modalities": ["text"],
        "service_tier": "auto",
    }
    await complete(world, **nothing)
    await complete(world, **dict.fromkeys(nothing))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stop_token_ids": [3]}, "stop_token_ids"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"echo": True}, "echo"),
        ({"store": True}, "store"),
        ({"prompt": "hi"}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "5"}]}, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "user", "content": "a " * 600}]}, "messages"),
        ({"model": None}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1025}, "max_tokens"),
        ({"max_completion_tokens": 1025}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 4}, "max_tokens"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"max_completion_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
async def test_what_is_not_done_here_is_refused_by_name(world: App, fields: dict[str, Any], param: str) -> None:
    status, _, named = await refusal(world, **fields)
    assert (status, named) == (422, param)
    assert world.engine.num_open == 0


async def test_a_conversation_over_the_context_is_told_in_the_words_of_this_route(world: App) -> None:
    long = [{"role": "user", "content": "a " * 600}]
    for limit in ({}, {"max_tokens": 4}, {"max_completion_tokens": 4}):
        reply = await world.ask("POST", PATH, {"model": "relay/chain", "messages": long, **limit})
        message = reply.json()["error"]["message"]
        assert message.endswith(f"shorten the prompt or lower {next(iter(limit), 'max_tokens')}")
        assert "max_new_tokens" not in message


@pytest.mark.parametrize(("model", "code"), UNKNOWN_MODELS)
async def test_a_model_nobody_has_is_404(world: App, alora: Path, model: str, code: str) -> None:
    await world.register(alora, "sql")
    for stream in (False, True):
        assert await refusal(world, model=model, stream=stream) == (404, code, "model")


async def test_what_goes_wrong_after_the_first_byte_is_an_event(world: App) -> None:
    world.engine.failure, world.engine.fail_after = EngineStopped("the engine has stopped"), 3
    reply = await world.ask("POST", PATH, {"model": "relay/chain", "messages": HELLO, "stream": True})
    assert (reply.status, chunks(reply)[-1]["error"]["code"]) == (200, "engine_stopped")
    assert await world.metric('lora_relay_requests_total{endpoint="chat_completions",outcome="error"}') == 1


async def test_of_mistakes_in_each_of_many_items_one_is_told(world: App) -> None:
    parts = [{"role": "user", "content": [{"type": "text"}] * 1000}] * 20
    assert await refusal(world, messages=parts) == (422, "invalid_field", "messages.0.content")
    assert await refusal(world, messages=[1] * 300_000) == (422, "invalid_field", "messages.0")
    assert await refusal(world, stop_token_ids=["a"] * 100_000) == (422, "invalid_field", "stop_token_ids")
