"""One streamed `/generate`, and when its pieces arrived. Knows bytes, events and clocks; nothing of loads or phases."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx

_SHOWN_CHARS = 200


@dataclass(frozen=True)
class Heard:
    """A whole answer. `gaps` are the seconds between two pieces of its text; `ref` is the expert's name@version."""

    ref: str
    text: str
    gaps: tuple[float, ...]
    completion_tokens: int


@dataclass(frozen=True)
class Unheard:
    """An answer that did not come, or not whole."""

    reason: str


class BrokenStream(Exception):
    """The answer is not what docs/api.md promises."""


def body(ref: str, prompt: str, max_new_tokens: int) -> dict[str, Any]:
    """Greedy, and of exactly this length."""
    return {"prompt": prompt, "expert": ref, "max_new_tokens": max_new_tokens, "ignore_eos": True}


async def listen(client: httpx.AsyncClient, request: Mapping[str, Any]) -> Heard | Unheard:
    """Asks and listens to the end; a server that fails is an outcome, not an exception."""
    try:
        return await _listen(client, request)
    except (BrokenStream, httpx.HTTPError) as error:
        return Unheard(f"{type(error).__name__}: {error}"[:_SHOWN_CHARS])


async def _listen(client: httpx.AsyncClient, request: Mapping[str, Any]) -> Heard:
    pieces: list[str] = []
    arrivals: list[float] = []
    done: dict[str, Any] | None = None
    async with client.stream("POST", "/generate", json={**request, "stream": True}) as response:
        if response.status_code != 200:
            raise BrokenStream(f"status {response.status_code}: {(await response.aread())[:_SHOWN_CHARS]!r}")
        async for name, data in read_events(response.aiter_bytes()):
            if name == "error":
                raise BrokenStream(f"error event: {data}")
            if name == "token":
                arrivals.append(time.perf_counter())
                pieces.append(data["text"])
            elif name == "done":
                done = data
    if done is None:
        raise BrokenStream("the stream ended without a done event")
    routing = done["routing"]
    gaps = tuple(later - earlier for earlier, later in pairwise(arrivals))
    ref = f"{routing['expert']}@{routing['version']}"
    return Heard(ref, "".join(pieces), gaps, done["usage"]["completion_tokens"])


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Name and JSON of each event. Lines end at line feeds alone: text may hold other separators."""
    buffer, name = b"", ""
    async for chunk in chunks:
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            field, _, value = line.partition(b": ")
            if field == b"event":
                name = value.decode()
            elif field == b"data":
                yield name, json.loads(value)
