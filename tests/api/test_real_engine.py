"""The whole server with the real engine on a tiny random base: what only both together can get wrong."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from transformers import AutoTokenizer

from expert_store import Indicators
from server.app import build_app
from server.engine import Engine
from server.model.base import Base
from server.model.chat import ChatFormat, activation_start
from server.settings import Settings
from server.text import HALF_CHARACTER
from tests.api.conftest import App, new_router, router_parts
from tests.api.test_gates import gated_parts
from tests.support import asgi, tiny

pytestmark = pytest.mark.anyio
PROMPTS = ["what is the capital of France?", "the quick brown fox", "hello", "0123 over the lazy dog"]


class RealApp(App):
    """The same application, on an engine that computes."""

    real: Engine
    base: Base
    chat: ChatFormat

    async def text(self, prompt: str, **fields: Any) -> str:
        body = {"prompt": prompt, "max_new_tokens": 12, "ignore_eos": True, **fields}
        reply = await self.ask("POST", "/generate", body)
        assert reply.status == 200, reply.body
        return str(reply.json()["text"])


@asynccontextmanager
async def running(base_folder: Path, tmp_path: Path, **more: Any) -> AsyncIterator[RealApp]:
    """A server on the store of `tmp_path`, which may hold experts of an earlier one."""
    settings = Settings(
        base=str(base_folder),
        dtype="fp32",
        store=tmp_path / "store",
        cache=tmp_path / "cache",
        no_demo=True,
        step_tokens=64,
        **{"kv_memory": 1 << 24, **more},
    )
    world = RealApp(FastAPI(), settings)

    def make_engine(base: Base, chat: ChatFormat, config: Any, observer: Any) -> Engine:
        world.real, world.base, world.chat = Engine(base, chat, config, observer), base, chat
        return world.real

    world.app = build_app(settings, make_engine=make_engine)
    async with asgi.running(world.app):
        yield world
    world.real.check_integrity()


@pytest.fixture
async def real(base_folder: Path, tmp_path: Path) -> AsyncIterator[RealApp]:
    async with running(base_folder, tmp_path) as world:
        yield world


async def test_a_registered_expert_answers_unlike_the_base_and_always_the_same(
    real: RealApp, alora: Path, lora: Path
) -> None:
    assert (await real.register(alora, "sql")).status == 201
    assert (await real.register(lora, "plain", manifest="{}")).status == 201
    base = await real.text("hello", router="none")
    for name in ("sql", "plain"):
        text = await real.text("hello", expert=name)
        assert text != base
        assert await real.text("hello", expert=name) == text


async def test_an_expert_whose_files_are_gone_fails_who_names_it_and_no_routed_request(
    base_folder: Path, tmp_path: Path, alora: Path, lora: Path
) -> None:
    async with running(base_folder, tmp_path) as world:
        await world.register(lora, "plain", threshold="0.001")
        await world.register(alora, "kept", threshold="0.001")
        expected = await world.text("hello")
        await world.register(alora, "lost", threshold="0.001")
        for file in (tmp_path / "store").rglob("lost/**/adapter_model.safetensors"):
            file.unlink()
    async with running(base_folder, tmp_path) as world:
        reply = (await world.ask("POST", "/generate", {"prompt": "hello", "max_new_tokens": 12})).json()
        assert reply["routing"]["expert"] == "kept"
        lost, kept = reply["routing"]["considered"]
        assert (lost["expert"], lost["score"], lost["accepted"]) == ("lost", None, False)
        assert "lost@1 cannot be read any more" in lost["problem"]
        assert str(tmp_path) not in lost["problem"]
        assert (kept["expert"], kept["accepted"], kept["problem"]) == ("kept", True, None)
        assert await world.text("hello") == expected
        assert await world.metric('lora_relay_expert_verdicts_total{expert="lost",verdict="fail"}') == 2
        named = await world.ask("POST", "/generate", {"prompt": "hello", "expert": "lost"})
        assert (named.status, named.json()["error"]["code"]) == (500, "corrupt_store")


async def test_a_window_that_needs_more_slots_than_there_are_is_asked_one_by_one(
    base_folder: Path, tmp_path: Path, chat: ChatFormat
) -> None:
    invocation = chat.generation_prompt
    async with running(base_folder, tmp_path) as world:
        for seed, name in enumerate(["a", "b", "c"]):
            adapter = tiny.write_adapter(
                tmp_path / name, base_folder, kind="alora", rank=16, invocation=invocation, seed=seed
            )
            await world.register(adapter, name, threshold="0.9999999")
        whole = (await world.ask("POST", "/route", {"prompt": "hello"})).json()["routing"]
    async with running(base_folder, tmp_path, max_rank=8, expert_slots=4, chain_window=4) as world:
        single = (await world.ask("POST", "/route", {"prompt": "hello"})).json()["routing"]
    assert [c["problem"] for c in single["considered"]] == [None, None, None]
    assert [c["score"] for c in single["considered"]] == pytest.approx(
        [c["score"] for c in whole["considered"]], rel=1e-4
    )


async def test_without_a_limit_an_answer_may_fill_the_context(base_folder: Path, tmp_path: Path, alora: Path) -> None:
    hello = {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True}
    async with running(base_folder, tmp_path) as world:
        await world.register(alora, "one", threshold="0.001")
        context = world.base.max_context
        counts = {}
        for model in (base_folder.name, "one"):
            usage = (await world.ask("POST", "/v1/chat/completions", {"model": model, **hello})).json()["usage"]
            counts[model] = context - usage["total_tokens"]
        accept = len(world.chat.indicator_tokens(Indicators()).accept)
        assert counts == {base_folder.name: 0, "one": accept}


async def test_the_stream_gives_the_same_text(real: RealApp, alora: Path) -> None:
    await real.register(alora, "sql")
    for prompt in PROMPTS:
        body = {"prompt": prompt, "max_new_tokens": 12, "ignore_eos": True}
        events = (await real.ask("POST", "/generate", {**body, "stream": True})).events()
        streamed = "".join(data["text"] for name, data in events if name == "token")
        assert streamed == await real.text(prompt)


async def test_the_chain_reads_the_prompt_once_and_answers_as_the_named_expert_does(real: RealApp, alora: Path) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        await real.register(alora, name, threshold="0.001")
    routed = (await real.ask("POST", "/route", {"prompt": "what is the capital of France? " * 4})).json()
    prompt_tokens, computed = (routed["usage"][key] for key in ("prompt_tokens", "computed_tokens"))
    assert prompt_tokens < computed <= prompt_tokens + 12 * len(names)  # suffix and accept string of each
    assert routed["routing"]["expert"] == "d"
    assert await real.text("hello") == await real.text("hello", expert="d")


async def test_gated_experts_are_asked_on_one_prefill_and_the_winner_answers_as_pefts_plain_lora(
    real: RealApp, base_folder: Path, lora: Path, alora: Path, chat: ChatFormat
) -> None:
    for name in ("a", "b", "c"):
        reply = await real.upload(gated_parts(lora, alora, name, threshold="0.001"))
        assert reply.status == 201, reply.body
    await real.register(alora, "d", threshold="0.9999999")
    question = "what is the capital of France? " * 4
    routed = (await real.ask("POST", "/route", {"prompt": question})).json()
    prompt_tokens, computed = (routed["usage"][key] for key in ("prompt_tokens", "computed_tokens"))
    assert prompt_tokens < computed <= prompt_tokens + 12 * 4
    assert [c["expert"] for c in routed["routing"]["considered"]] == ["d", "c", "b", "a"]
    assert routed["routing"]["expert"] == "c"
    tokens = chat.render([{"role": "user", "content": question}]).tokens
    plain = tiny.oracle_tokens(tiny.oracle(base_folder, lora, torch.float32), tokens, 12)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    expected = tokenizer.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert await real.text(question) == await real.text(question, expert="c") == expected.rstrip(HALF_CHARACTER)


async def test_a_raw_prompt_reaches_a_gated_expert_by_name_always_and_by_the_chain_where_the_gate_wakes_up(
    real: RealApp, lora: Path, alora: Path, chat: ChatFormat
) -> None:
    await real.upload(gated_parts(lora, alora, "plain", threshold="0.001"))
    assert (await completion(real, model="plain", prompt="hello"))["usage"]["completion_tokens"] == 12
    reply = await real.ask("POST", "/v1/completions", {"model": "relay/chain", "prompt": "hello"})
    assert (reply.status, reply.json()["error"]["code"]) == (422, "invocation_missing")
    tokens = list(chat.render([{"role": "user", "content": "hello"}]).tokens)
    answer = await completion(real, model="relay/chain", prompt=tokens)
    assert answer["routing"]["expert"] == "plain"
    assert answer["choices"] == (await completion(real, model="plain", prompt=tokens))["choices"]


async def test_an_expert_registered_while_streams_run_changes_none_of_them(
    real: RealApp, alora: Path, lora: Path
) -> None:
    await real.register(lora, "plain", manifest="{}")
    expected = {prompt: await real.text(prompt, expert="plain", max_new_tokens=30) for prompt in PROMPTS}
    body = {"expert": "plain", "max_new_tokens": 30, "ignore_eos": True, "stream": True}
    streams = [(prompt, real.begin("POST", "/generate", {**body, "prompt": prompt})) for prompt in PROMPTS * 4]
    assert (await real.register(alora, "sql", threshold="0.001")).status == 201
    for prompt, stream in streams:
        events = (await stream.finish()).events()
        assert events[-1][0] == "done"
        assert "".join(data["text"] for name, data in events if name == "token") == expected[prompt]
    assert (await real.ask("POST", "/route", {"prompt": "hello"})).json()["routing"]["expert"] == "sql"


async def test_clients_that_leave_at_any_time_leak_nothing(real: RealApp, alora: Path) -> None:
    await real.register(alora, "sql")
    for delay in range(12):
        body = {"prompt": PROMPTS[delay % 4], "max_new_tokens": 200, "ignore_eos": True, "stream": bool(delay % 2)}
        exchange = real.begin("POST", "/generate", body)
        await asyncio.sleep(delay * 0.004)
        exchange.leave()
        await exchange.finish()
    async with asyncio.timeout(20):
        while real.real.blocks.num_used:
            await asyncio.sleep(0.01)
    assert await real.text("hello")


async def test_weights_that_overflow_are_refused(real: RealApp, base_folder: Path, tmp_path: Path) -> None:
    huge = tiny.write_adapter(tmp_path / "huge", base_folder, kind="lora", strength=1e36)
    before = await real.text("hello", router="none")
    reply = await real.register(huge, "huge", manifest="{}")
    assert (reply.status, reply.json()["error"]["code"]) == (422, "invalid_adapter")
    assert "finite" in reply.json()["error"]["message"]
    assert await real.text("hello", router="none") == before


async def test_a_prompt_over_the_context_is_refused_with_both_numbers(real: RealApp) -> None:
    reply = await real.ask("POST", "/generate", {"prompt": "hello " * 600})
    assert (reply.status, reply.json()["error"]["code"]) == (422, "context_length_exceeded")


async def test_the_step_metrics_come_from_the_engine(real: RealApp, alora: Path) -> None:
    await real.register(alora, "sql")
    await real.text("hello", expert="sql")
    assert await real.metric("lora_relay_step_seconds_count") > 5
    assert await real.metric("lora_relay_kv_blocks") > 0
    assert await real.metric("lora_relay_step_experts_sum") > 0
    assert await real.metric('lora_relay_completion_tokens_total{expert="sql"}') == 12


async def completion(real: RealApp, **fields: Any) -> Any:
    body = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, **fields}
    reply = await real.ask("POST", "/v1/completions", body)
    assert reply.status == 200, reply.body
    return reply.json()


async def test_raw_completions_are_what_transformers_and_peft_generate(
    real: RealApp, base_folder: Path, lora: Path, chat: ChatFormat
) -> None:
    await real.register(lora, "plain", manifest="{}")
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    for model, adapter in ((base_folder.name, None), ("plain", lora)):
        oracle = tiny.oracle(base_folder, adapter, torch.float32)
        for prompt in PROMPTS:
            tokens = tiny.oracle_tokens(oracle, chat.encode(prompt), 12)
            answer = await completion(real, model=model, prompt=prompt)
            expected = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert answer["choices"][0]["text"] == expected.rstrip(HALF_CHARACTER)


async def test_a_rendered_prompt_is_answered_as_generate_answers_the_message(
    real: RealApp, alora: Path, chat: ChatFormat
) -> None:
    await real.register(alora, "sql", threshold="0.001")
    tokens = list(chat.render([{"role": "user", "content": "hello"}]).tokens)
    named = await real.text("hello", expert="sql")
    for model in ("sql", "relay/chain"):
        assert (await completion(real, model=model, prompt=tokens))["choices"][0]["text"] == named
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert (await completion(real, model="sql", prompt=text))["choices"][0]["text"] == named


async def test_an_activated_expert_refuses_a_raw_prompt_that_does_not_invoke_it(real: RealApp, alora: Path) -> None:
    await real.register(alora, "sql")
    for model in ("sql", "relay/chain"):
        reply = await real.ask("POST", "/v1/completions", {"model": model, "prompt": "hello"})
        error = reply.json()["error"]
        assert (reply.status, error["code"], error["param"]) == (422, "invocation_missing", "model")


async def test_an_activated_fallback_leaves_a_raw_prompt_that_does_not_invoke_it_to_the_base(
    real: RealApp, alora: Path, chat: ChatFormat
) -> None:
    await real.register(alora, "general", manifest="{}")
    raw = {"model": "relay/chain", "prompt": "hello", "max_tokens": 8, "temperature": 0}
    before = (await real.ask("POST", "/v1/completions", raw)).json()["choices"]
    assert (await real.ask("PUT", "/fallback", {"expert": "general"})).status == 200
    assert (await real.ask("POST", "/v1/completions", raw)).json()["choices"] == before
    woken = {**raw, "prompt": list(chat.render([{"role": "user", "content": "hello"}]).tokens)}
    assert (await real.ask("POST", "/v1/completions", woken)).json()["routing"]["expert"] == "general"


async def test_experts_that_wake_up_early_in_a_raw_prompt_stay_within_what_it_reserved(
    real: RealApp, base_folder: Path, chat: ChatFormat, tmp_path: Path
) -> None:
    whole = chat.generation_prompt
    for kind, invocation in (("short", whole[:1]), ("whole", whole)):
        adapter = tiny.write_adapter(tmp_path / kind, base_folder, kind="alora", invocation=invocation)
        for name in ("one", "two"):
            assert (await real.register(adapter, f"{kind}-{name}", threshold="0.9999999")).status == 201
    text = chat.encode("the quick brown fox " * 20)
    short, every = ["short-one", "short-two"], ["short-one", "whole-one", "short-two", "whole-two"]
    for order, prompt in (
        (short, whole[:1] + text),
        (short, text + whole[:1] + text),
        (every, text + whole + text),
        (every, whole + text),
        (every, whole),
    ):
        await real.ask("PUT", "/chain", {"order": order})
        routed = await completion(real, model="relay/chain", prompt=list(prompt))
        assert [c["expert"] for c in routed["routing"]["considered"]] == order
        assert routed["routing"]["reason"] == "no_acceptance"
        assert routed["choices"] == (await completion(real, model=base_folder.name, prompt=list(prompt)))["choices"]


async def test_whoever_wakes_up_early_and_answers_stays_within_what_was_reserved(
    real: RealApp, base_folder: Path, alora: Path, chat: ChatFormat, tmp_path: Path
) -> None:
    prompt = "hello " + "zqxjkvbw " * 40
    tokens = chat.render([{"role": "user", "content": prompt}]).tokens
    invocation = tokens[1:4]
    assert (activation_start(tokens, invocation), len(tokens) > 300) == (1, True)
    for name in ("one", "two", "three", "four"):
        assert (await real.register(alora, name, threshold="0.9999999")).status == 201
    early = tiny.write_adapter(tmp_path / "early", base_folder, kind="alora", invocation=invocation)
    assert (await real.register(early, "early", manifest="{}")).status == 201
    named = await real.text(prompt, expert="early")
    assert await real.text(prompt, expert="early", shadow=["chain"]) == named
    assert (await real.ask("PUT", "/fallback", {"expert": "early"})).status == 200
    assert await real.text(prompt) == named
    assert named != await real.text(prompt, router="none")


async def test_without_end_of_text_the_answer_has_every_token_asked_for(real: RealApp) -> None:
    [base] = [c["id"] for c in (await real.ask("GET", "/v1/models")).json()["data"] if c["parent"] is None]
    for seed in range(8):
        answer = await completion(real, model=base, prompt="hello", temperature=2, seed=seed, max_tokens=80)
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 80)


async def test_the_chain_and_the_learned_router_shadow_each_other_on_one_engine(
    real: RealApp, alora: Path, lora: Path, base_folder: Path, tmp_path: Path
) -> None:
    other = tiny.write_adapter(tmp_path / "other", base_folder, kind="lora", targets=["o_proj"], seed=7)
    assert (await real.register(alora, "asked")).status == 201
    for folder, name in ((lora, "sql"), (other, "dates")):
        assert (await real.register(folder, name, manifest="{}")).status == 201
    draft, network = new_router(real, real.base, {"sql": 1.0, "dates": -1.0})
    assert (await real.upload(router_parts(draft, network.to_bytes()), path="/routers/learned")).status == 201
    alone = {name: [await real.text(prompt, router=name) for prompt in PROMPTS] for name in ("chain", "learned")}
    assert alone["chain"] != alone["learned"]

    async def both(prompt: str, used: str, shadow: str) -> tuple[str, dict[str, Any]]:
        body = {"prompt": prompt, "max_new_tokens": 12, "ignore_eos": True, "router": used, "shadow": [shadow]}
        reply = await real.ask("POST", "/generate", body)
        assert reply.status == 200, reply.body
        return reply.json()["text"], reply.json()["routing"]

    pairs = [("chain", "learned"), ("learned", "chain")]
    asked = [(prompt, *pair) for prompt in PROMPTS for pair in pairs]
    answers = await asyncio.gather(*(both(*one) for one in asked))
    for (prompt, used, _), (text, routing) in zip(asked, answers, strict=True):
        assert text == alone[used][PROMPTS.index(prompt)], "a shadow changes nothing"
        [shadow] = routing["shadow"]
        assert shadow["problem"] is None
        assert shadow["agreed"] is False, "the one names a mixture, the other asks whom the mixture lacks"
    assert await real.metric('lora_relay_router_seconds_count{router="learned"}') == 12


@pytest.mark.parametrize("kind", ["plain", "activated", "gated", "asked"])
async def test_a_fallback_experts_answer_is_its_answer_when_named(
    real: RealApp, alora: Path, lora: Path, kind: str
) -> None:
    for name in ("activated", "asked"):
        assert (await real.register(alora, name, threshold="0.999999999")).status == 201
    assert (await real.register(lora, "plain", manifest="{}")).status == 201
    assert (await real.upload(gated_parts(lora, alora, "gated", threshold="0.999999999"))).status == 201
    assert (await real.ask("PUT", "/chain", {"order": ["asked"]})).status == 200
    assert (await real.ask("PUT", "/fallback", {"expert": kind})).status == 200
    unlike_base = []
    for prompt in PROMPTS:
        routing = (await real.ask("POST", "/route", {"prompt": prompt})).json()["routing"]
        assert (routing["expert"], routing["fallback"], len(routing["considered"])) == (kind, True, 1)
        named = await real.text(prompt, expert=kind)
        assert await real.text(prompt) == named
        base = await real.text(prompt, router="none")
        assert await real.text(prompt, fallback="base") == base
        unlike_base.append(named != base)
    assert any(unlike_base)


async def test_a_named_expert_answers_the_same_beside_a_shadow_chain_in_which_it_rejects(
    real: RealApp, alora: Path
) -> None:
    assert (await real.register(alora, "sql", threshold="0.999999999")).status == 201
    for prompt in PROMPTS:
        body = {"prompt": prompt, "expert": "sql", "max_new_tokens": 12, "ignore_eos": True}
        alone = (await real.ask("POST", "/generate", body)).json()
        beside = (await real.ask("POST", "/generate", {**body, "shadow": ["chain"]})).json()
        assert beside["routing"]["shadow"][0]["fallback"] is True
        assert beside["text"] == alone["text"]
