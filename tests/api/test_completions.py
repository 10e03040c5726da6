"""`POST /v1/completions` and `GET /v1/models`: OpenAI's shapes, raw prompts, and what is not done here."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from server.errors import EngineStopped
from server.model.base import load_base, public_name
from server.model.chat import ChatFormat
from server.model.sampling import Sampling
from tests.api.conftest import App, Start
from tests.support import tiny
from tests.support.asgi import Reply

UNKNOWN_MODELS = [
    ("gpt-4", "unknown_expert"),
    ("sql@9", "unknown_version"),
    ("sql@x", "unknown_alias"),
    ("relay/none", "unknown_expert"),
]
pytestmark = pytest.mark.anyio
TEXT = "hello wörld 😀"


async def complete(world: App, **fields: Any) -> Any:
    body = {"model": "relay/chain", "prompt": "hi", "max_tokens": 100, **fields}
    reply = await world.ask("POST", "/v1/completions", body)
    assert reply.status == 200, reply.body
    return reply.json()


async def refusal(world: App, **fields: Any) -> tuple[int | None, str, str]:
    reply = await world.ask("POST", "/v1/completions", {"model": "relay/chain", "prompt": "hi", **fields})
    error = reply.json()["error"]
    return reply.status, error["code"], error["param"]


def chunks(reply: Reply) -> list[Any]:
    """The events' JSON; the stream must have ended as OpenAI's do."""
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    *blocks, done, nothing = reply.body.decode().split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


async def test_the_whole_answer_has_openais_shape(world: App) -> None:
    [base] = [card["id"] for card in (await world.ask("GET", "/v1/models")).json()["data"] if card["parent"] is None]
    answer = await complete(world, model=base)
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", base)
    choice = {"index": 0, "text": f" base: {TEXT}", "finish_reason": "stop", "logprobs": None}
    assert answer["choices"] == [choice]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer["routing"] is None
    assert await world.metric('lora_relay_requests_total{endpoint="completions",outcome="stop"}') == 1


async def test_the_prompt_goes_to_the_engine_as_it_is(world: App, chat: ChatFormat) -> None:
    tokens = chat.encode("the fox")
    for prompt in ("the fox", ["the fox"], list(tokens), [list(tokens)]):
        answer = await complete(world, prompt=prompt)
        assert world.engine.sessions[-1].prompt.tokens == tokens
        assert answer["usage"]["prompt_tokens"] == len(tokens)


async def test_a_model_is_the_base_an_expert_or_the_chain(world: App, alora: Path) -> None:
    for _ in range(2):
        await world.register(alora, "sql")
    await world.ask("PUT", "/experts/sql/aliases/old", {"version": 1})
    for model in ("sql", "sql@1", "sql@old"):
        answer = await complete(world, model=model)
        assert (answer["model"], answer["choices"][0]["text"], answer["routing"]) == (model, f"sql: {TEXT}", None)
    routed = await complete(world, prompt="please do sql")
    assert (routed["routing"]["expert"], routed["routing"]["reason"]) == ("sql", "accepted")
    assert routed["choices"][0]["text"] == f"sql: {TEXT}"
    stranger = await complete(world, prompt="something else")
    assert (stranger["routing"]["expert"], stranger["routing"]["reason"]) == (None, "no_acceptance")


async def test_every_listed_model_can_be_asked_and_has_its_parent(world: App, alora: Path, lora: Path) -> None:
    await world.register(alora, "sql")
    await world.register(lora, "plain", manifest="{}")
    await world.register(lora, "hidden", manifest="{}", activate="false")
    listing = (await world.ask("GET", "/v1/models")).json()
    assert listing["object"] == "list"
    base, *others = listing["data"]
    assert set(base) == {"id", "object", "created", "owned_by", "parent"}
    assert (base["object"], base["parent"]) == ("model", None)
    assert [card["id"] for card in others] == ["relay/chain", "plain", "sql"]
    assert {card["parent"] for card in others} == {base["id"]}
    for card in listing["data"]:
        await complete(world, model=card["id"])


async def test_the_bases_name_stays_the_bases(start: Start, base_folder: Path, lora: Path) -> None:
    async with start() as app:
        base = load_base(str(base_folder), dtype="fp32", device="cpu", cache=app.settings.cache)
        tiny.publish(app.store, base, lora, base_folder.name, indicators=False)  # as by a trainer beside the server
        reply = await app.register(lora, base_folder.name, manifest="{}")
        assert (reply.status, reply.json()["error"]["param"]) == (422, "name")
        assert f"{base_folder.name} is that of the base model" in reply.json()["error"]["message"]
        listed = [card["id"] for card in (await app.ask("GET", "/v1/models")).json()["data"]]
        assert listed == [base_folder.name, "relay/chain"]
        assert (await complete(app, model=base_folder.name))["choices"][0]["text"] == f" base: {TEXT}"


async def test_one_model_is_shown_as_it_is_listed(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    for card in (await world.ask("GET", "/v1/models")).json()["data"]:
        assert (await world.ask("GET", f"/v1/models/{card['id']}")).json() == card
    old = (await world.ask("GET", "/v1/models/sql@1")).json()
    assert (old["id"], old["object"], old["parent"]) == ("sql@1", "model", card["parent"])


@pytest.mark.parametrize(("model", "code"), [*UNKNOWN_MODELS, ("", "unknown_expert")])
async def test_a_model_nobody_has_is_not_shown(world: App, alora: Path, model: str, code: str) -> None:
    await world.register(alora, "sql")
    reply = await world.ask("GET", f"/v1/models/{model}")
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (404, code, "model")


def test_the_base_is_called_by_its_name_and_never_by_a_path(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()
    assert public_name("bundled") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert public_name("Qwen/Qwen3-0.6B@main") == "Qwen/Qwen3-0.6B"
    assert public_name(f"{tmp_path}/") == tmp_path.name
    assert public_name(str(tmp_path / "tiny.gguf")) == "tiny"


async def test_the_stream_says_what_the_whole_answer_says(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    body = {"model": "relay/chain", "prompt": "please do sql", "max_tokens": 100}
    whole = await complete(world, **body)
    *texts, last = chunks(await world.ask("POST", "/v1/completions", {**body, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in texts) == whole["choices"][0]["text"]
    assert {chunk["choices"][0]["finish_reason"] for chunk in texts} == {None}
    assert last["choices"][0] == {"index": 0, "text": "", "finish_reason": "stop", "logprobs": None}
    assert last["routing"]["expert"] == "sql"
    assert {(c["id"], c["object"], c["model"], c["usage"]) for c in [*texts, last]} == {
        (last["id"], "text_completion", "relay/chain", None)
    }


async def test_the_usage_comes_last_and_only_when_wanted(world: App) -> None:
    whole = await complete(world)
    body = {"model": "relay/chain", "prompt": "hi", "max_tokens": 100, "stream": True}
    wanted = {**body, "stream_options": {"include_usage": True}}
    *_, last = chunks(await world.ask("POST", "/v1/completions", wanted))
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    without = chunks(await world.ask("POST", "/v1/completions", {**body, "stream_options": {"include_usage": False}}))
    assert without[-1]["choices"]


async def test_values_reach_the_engine_under_our_names(world: App) -> None:
    await complete(world, max_tokens=9, min_tokens=3, top_k=-1, seed=7, ignore_eos=True, presence_penalty=0.5)
    assert world.engine.samplings[-1] == Sampling(
        max_new_tokens=9, min_new_tokens=3, temperature=1.0, seed=7, ignore_eos=True, presence_penalty=0.5
    )
    reply = await world.ask("POST", "/v1/completions", {"model": "relay/chain", "prompt": "hi"})
    assert reply.status == 200
    assert world.engine.samplings[-1] == Sampling(max_new_tokens=16, temperature=1.0)


async def test_stop_strings_end_the_text(world: App) -> None:
    answer = await complete(world, stop="hello")
    assert answer["choices"][0] == {"index": 0, "text": " base: ", "finish_reason": "stop", "logprobs": None}


async def test_what_asks_for_nothing_is_taken(world: App) -> None:
    neutral = {
        "n": 1,
        "best_of": 1,
        "echo": False,
        "suffix": "",
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "user": "me",
        "use_beam_search": False,
        "length_penalty": 1.0,
        "skip_special_tokens": True,
    }
    nothing = dict.fromkeys([*neutral, "logprobs", "temperature", "max_tokens", "stop", "seed", "stream"])
    for fields in (neutral, nothing):
        await complete(world, **fields)
    assert world.engine.samplings[-1] == Sampling(max_new_tokens=16, temperature=1.0)


@pytest.mark.parametrize("options", [{"include_usage": None, "continuous_usage_stats": None}, {}])
async def test_a_stream_option_that_is_null_is_one_left_out(world: App, options: dict[str, Any]) -> None:
    body = {"model": "relay/chain", "prompt": "hi", "stream": True, "stream_options": options}
    assert chunks(await world.ask("POST", "/v1/completions", body))[-1]["choices"]


async def test_usage_in_the_last_chunk_alone_is_what_false_continuous_usage_stats_ask_for(world: App) -> None:
    options = {"include_usage": True, "continuous_usage_stats": False}
    body = {"model": "relay/chain", "prompt": "hi", "stream": True, "stream_options": options}
    *others, last = chunks(await world.ask("POST", "/v1/completions", body))
    assert last["usage"]
    assert {chunk["usage"] for chunk in others} == {None}


async def test_continuous_usage_stats_count_every_chunk_of_text(world: App) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "relay/chain", "prompt": "hi", "max_tokens": 100, "stream": True, "stream_options": options}
    *texts, _, last = chunks(await world.ask("POST", "/v1/completions", body))
    counted = [chunk["usage"]["completion_tokens"] for chunk in texts]
    assert len(counted) > 2
    assert counted == sorted(set(counted))
    assert {chunk["usage"]["prompt_tokens"] for chunk in texts} == {last["usage"]["prompt_tokens"]}
    assert counted[-1] <= last["usage"]["completion_tokens"]


async def test_a_prompt_over_the_context_is_told_in_the_words_of_this_route(world: App) -> None:
    reply = await world.ask("POST", "/v1/completions", {"model": "relay/chain", "prompt": [1] * 600})
    message = reply.json()["error"]["message"]
    assert reply.status == 422
    assert "lower max_tokens" in message
    assert "max_new_tokens" not in message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"length_penalty": 0.8}, "length_penalty"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True}, "echo"),
        ({"logprobs": 0}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"logit_bias": {"5": -100.0}}, "logit_bias"),
        ({"best": 1}, "best"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [1, True]}, "prompt"),
        ({"prompt": [1, 2.0]}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [1, 400]}, "prompt"),
        ({"prompt": [10**40]}, "prompt"),
        ({"prompt": [1] * 600}, "prompt"),
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1025}, "max_tokens"),
        ({"min_tokens": 1025}, "min_tokens"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    ],
)
async def test_what_is_not_done_here_is_refused_by_name(world: App, fields: dict[str, Any], param: str) -> None:
    status, _, named = await refusal(world, **fields)
    assert (status, named) == (422, param)
    assert world.engine.num_open == 0


@pytest.mark.parametrize(("model", "code"), UNKNOWN_MODELS)
async def test_a_model_nobody_has_is_404(world: App, alora: Path, model: str, code: str) -> None:
    await world.register(alora, "sql")
    for stream in (False, True):
        assert await refusal(world, model=model, stream=stream) == (404, code, "model")


async def test_what_goes_wrong_after_the_first_byte_is_an_event(world: App) -> None:
    world.engine.failure, world.engine.fail_after = EngineStopped("the engine has stopped"), 3
    reply = await world.ask("POST", "/v1/completions", {"model": "relay/chain", "prompt": "hi", "stream": True})
    assert (reply.status, chunks(reply)[-1]["error"]["code"]) == (200, "engine_stopped")
    assert await world.metric('lora_relay_requests_total{endpoint="completions",outcome="error"}') == 1


async def test_a_client_that_leaves_ends_its_request(world: App) -> None:
    for stream in (False, True):
        world.engine.pause_at = 5
        body = {"model": "relay/chain", "prompt": "hi", "stream": stream, "max_tokens": 100}
        exchange = world.begin("POST", "/v1/completions", body)
        while not world.engine.num_open:
            await asyncio.sleep(0.002)
        exchange.leave()
        await exchange.finish()
        assert world.engine.num_open == 0
    assert await world.metric('lora_relay_requests_total{endpoint="completions",outcome="disconnected"}') == 2


async def test_when_every_place_is_taken_the_next_gets_429(start: Start) -> None:
    async with start(max_running=1, max_queue=0) as world:
        world.engine.resume.clear()
        held = world.begin("POST", "/v1/completions", {"model": "relay/chain", "prompt": "hi"})
        while not world.engine.num_open:
            await asyncio.sleep(0.002)
        assert (await refusal(world))[:2] == (429, "too_busy")
        world.engine.resume.set()
        assert (await held.finish()).status == 200
