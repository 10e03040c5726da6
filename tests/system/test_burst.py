"""Ten times more requests than the server can hold: the surplus is refused, the others finish, memory stays."""

import asyncio
from collections import Counter
from pathlib import Path

import httpx

from tests.support import tiny
from tests.support.server import RelayServer

RUNNING, QUEUE = 4, 8
CAPACITY = RUNNING + QUEUE
LENGTH = 300  # long enough for all of a burst to have arrived before a place is free again


async def burst(url: str, count: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        body = {"prompt": "tell me everything", "max_new_tokens": LENGTH, "ignore_eos": True, "router": "none"}
        return await asyncio.gather(*(client.post("/generate", json=body) for _ in range(count)))


def test_the_surplus_is_refused_and_memory_stays_as_it_was(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base")
    flags = ("--no-demo", "--kv-memory", "64MiB", "--max-running", str(RUNNING), "--max-queue", str(QUEUE))
    with RelayServer(store=tmp_path / "store", base=str(base), log=tmp_path / "log", flags=flags) as server:
        warm = asyncio.run(burst(server.url, CAPACITY))
        assert [answer.status_code for answer in warm] == [200] * CAPACITY
        before = server.resident_bytes()
        answers = asyncio.run(burst(server.url, 10 * CAPACITY))
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) == {200, 429}
        assert statuses[200] >= CAPACITY
        assert statuses[429] > 5 * CAPACITY
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
            else:
                assert answer.json()["usage"]["completion_tokens"] == LENGTH
        assert server.resident_bytes() - before < 32 << 20
        assert len(asyncio.run(burst(server.url, CAPACITY))) == CAPACITY
