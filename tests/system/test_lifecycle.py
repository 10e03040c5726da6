"""The whole server as a user runs it: swaps under load, kill -9, restart. Real process, real HTTP, tiny base."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from expert_store import verify_store
from server.model.base import load_base
from server.model.chat import ChatFormat
from tests.support import tiny
from tests.support.server import RelayServer

NUM_STREAMS = 16
LENGTH = 120


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    root = tmp_path_factory.mktemp("lifecycle")
    folder = tiny.write_base(root / "base")
    chat = ChatFormat(load_base(str(folder), dtype="fp32", device="cpu", cache=root).tokenizer)
    kinds: dict[str, Any] = {"one": "alora", "two": "lora", "late": "alora"}
    return folder, {
        name: tiny.write_adapter(root / name, folder, kind=kind, invocation=chat.generation_prompt, seed=seed)
        for seed, (name, kind) in enumerate(kinds.items())
    }


@pytest.fixture(scope="module")
def server(adapters: tuple[Path, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayServer]:
    tmp_path = tmp_path_factory.mktemp("server")
    flags = ("--dtype", "fp32", "--no-demo", "--kv-memory", "64MiB")
    with RelayServer(store=tmp_path / "store", base=str(adapters[0]), log=tmp_path / "log", flags=flags) as running:
        yield running


def selecting(threshold: float) -> dict[str, Any]:
    return {"indicators": {"accept": "<<pos>>", "reject": "<<neg>>"}, "threshold": threshold}


def requests() -> list[dict[str, Any]]:
    experts = [None, "one", "two", "one@1"]
    return [
        {"prompt": f"tell me about {i} " * (1 + i % 4), "expert": experts[i % 4], "router": "none",
         "max_new_tokens": LENGTH, "temperature": 0.8, "seed": i}
        for i in range(NUM_STREAMS)
    ]  # fmt: skip


def collect(server: RelayServer, body: dict[str, Any], started: threading.Event | None = None) -> str:
    text, events = "", []
    for event, data in server.stream(body):
        events.append(event)
        if event == "token":
            text += data["text"]
            if started is not None:
                started.set()
    assert events[0] == "routing"
    assert events[-1] == "done", events[-1]
    return text


def test_a_connection_can_be_used_again_after_a_while(server: RelayServer) -> None:
    """Clients that keep it for five seconds, as httpx does, would otherwise lose requests sent as the server closes."""
    with closing(HTTPConnection(server.url.removeprefix("http://"))) as connection:
        for pause in (6.0, 0.0):
            connection.request("GET", "/livez")
            assert connection.getresponse().read()
            kept = connection.sock
            assert kept is not None, "the server closed the connection behind its answer"
            time.sleep(pause)
        assert connection.sock is kept


def test_registering_under_load_disturbs_no_stream_and_the_next_request_is_routed_there(
    server: RelayServer, adapters: tuple[Path, dict[str, Path]]
) -> None:
    folders = adapters[1]
    for name in ("one", "two"):
        server.register(folders[name], name, selecting(0.999999))
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        quiet = list(pool.map(lambda body: collect(server, body), requests()))
        started = [threading.Event() for _ in range(NUM_STREAMS)]
        loaded = pool.map(lambda pair: collect(server, *pair), zip(requests(), started, strict=True))
        assert all(event.wait(60) for event in started)
        created = server.register(folders["late"], "late", selecting(0.000001))
        answer = server.post("/generate", {"prompt": "whose is this?", "max_new_tokens": 3})
        assert list(loaded) == quiet

    assert (created["name"], created["version"], created["kind"]) == ("late", 1, "alora")
    routing = answer["routing"]
    assert (routing["expert"], routing["version"], routing["digest"]) == ("late", 1, created["digest"])
    assert (routing["reason"], routing["fallback"]) == ("accepted", False)
    assert routing["catalog_generation"] == created["catalog_generation"]


def test_kill_9_and_restart_keep_pool_aliases_chain_and_fallback(
    server: RelayServer, adapters: tuple[Path, dict[str, Path]]
) -> None:
    folders = adapters[1]
    for name in ("one", "two", "late", "one"):
        server.register(folders[name], name, selecting(0.5))
    server.put("/experts/one/aliases/stable", {"version": 1})
    server.put("/chain", {"order": ["two", "late", "one"]})
    server.put("/fallback", {"expert": "two"})
    body = {"prompt": "the quick brown fox", "expert": "one@stable", "max_new_tokens": 20}
    paths = ("/experts", "/chain", "/experts/one", "/fallback")
    before, answer = [server.get(path) for path in paths], server.post("/generate", body)

    server.kill()
    server.start()

    assert [server.get(path) for path in paths] == before
    assert before[3]["expert"] == "two"
    again = server.post("/generate", body)
    assert (again["text"], again["routing"]) == (answer["text"], answer["routing"])
    server.put("/fallback", {"expert": None})


def test_a_chain_answer_is_the_named_experts_answer_and_costs_one_prefill(
    server: RelayServer, adapters: tuple[Path, dict[str, Path]]
) -> None:
    folders = adapters[1]
    server.register(folders["one"], "eager", selecting(0.000001))
    server.register(folders["late"], "picky", selecting(0.999999))
    server.put("/chain", {"order": ["picky", "eager"]})
    prompt = {"prompt": "the quick brown fox jumps over the lazy dog " * 4, "max_new_tokens": 12}
    routed = server.post("/generate", prompt)
    named = server.post("/generate", {**prompt, "expert": "eager"})

    assert [c["expert"] for c in routed["routing"]["considered"]] == ["picky", "eager"]
    assert routed["routing"]["expert"] == "eager"
    assert (routed["text"], routed["finish_reason"]) == (named["text"], named["finish_reason"])
    usage = routed["usage"]
    assert usage["prompt_tokens"] == named["usage"]["prompt_tokens"]
    per_expert = 12  # generation prompt and indicator tokens of the tiny tokenizer, with room
    assert usage["computed_tokens"] <= usage["prompt_tokens"] + usage["completion_tokens"] + 2 * per_expert


def test_sigterm_ends_the_server_at_once_and_verify_finds_a_whole_store(server: RelayServer) -> None:
    assert server.stop() in (0, -signal.SIGTERM)
    assert verify_store(server.store) == []
