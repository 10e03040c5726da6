"""One streamed completion, and what its arrival says. Knows bytes, events and clocks; nothing of rounds."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.serving.work import Job

_SHOWN_CHARS = 200


@dataclass(frozen=True)
class Completed:
    """An answer of the full length. Times are seconds; `first_token` counts from the sending of the request.

    `inter_token` is the mean between two tokens of this answer, by the server's own count: an event may hold several.
    """

    first_token: float
    inter_token: float
    completion_tokens: int


@dataclass(frozen=True)
class Failed:
    """An answer that did not come, or not whole."""

    reason: str


class BrokenStream(Exception):
    """The server's answer is not what OpenAI's API promises."""


async def complete(client: httpx.AsyncClient, job: Job) -> Completed | Failed:
    """A server that fails is an outcome, not an exception."""
    try:
        return await _measure(client, job)
    except (BrokenStream, httpx.HTTPError) as error:
        return Failed(f"{type(error).__name__}: {error}"[:_SHOWN_CHARS])


async def _measure(client: httpx.AsyncClient, job: Job) -> Completed:
    started = time.perf_counter()
    first = last = None
    usage: dict[str, int] | None = None
    async with client.stream("POST", "/v1/completions", json=_body(job)) as response:
        if response.status_code != 200:
            raise BrokenStream(f"status {response.status_code}: {(await response.aread())[:_SHOWN_CHARS]!r}")
        async for event in read_events(response.aiter_bytes()):
            if event.get("choices"):
                last = time.perf_counter()
                first = first or last
            usage = event.get("usage") or usage
    if first is None or last is None or usage is None:
        raise BrokenStream("the stream held no choices, or no usage")
    tokens = usage["completion_tokens"]
    if tokens != job.max_tokens:
        raise BrokenStream(f"{tokens} tokens came, {job.max_tokens} were asked for")
    return Completed(
        first_token=first - started,
        inter_token=(last - first) / (tokens - 1),
        completion_tokens=tokens,
    )


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each server-sent event until `[DONE]`. Raises BrokenStream where that is missing, or at an error.

    Lines end at line feeds alone: text may hold other separators, at which httpx's own lines would end too.
    """
    buffer = b""
    async for chunk in chunks:
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data == line.strip():
                continue  # a comment, another field, or the blank line behind an event
            if data == b"[DONE]":
                return
            event = _parse(data)
            if "error" in event:
                raise BrokenStream(f"error event: {event['error']}")
            yield event
    raise BrokenStream("the stream ended without [DONE]")


def _parse(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError as error:
        raise BrokenStream(f"an event is not JSON: {data[:_SHOWN_CHARS]!r}") from error
    if not isinstance(event, dict):
        raise BrokenStream(f"an event is not an object: {data[:_SHOWN_CHARS]!r}")
    return event


def _body(job: Job) -> dict[str, Any]:
    """Greedy, and of exactly the length asked for."""
    return {
        "model": job.model,
        "prompt": job.prompt,
        "max_tokens": job.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
