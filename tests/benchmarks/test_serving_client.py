"""Streams as servers send them, whole and broken, over real sockets."""

import httpx
import pytest

from benchmarks.serving import client as timed
from benchmarks.serving.client import BrokenStream, Completed, Failed, complete, read_events
from benchmarks.serving.load import run_round
from benchmarks.serving.work import Job
from tests.benchmarks.scripted import DONE, Piece, crowd, event, pause, scripted, text, usage
from tests.support.clocks import FakeTime

pytestmark = pytest.mark.anyio
JOB = Job("sql", "river stone", 3)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def outcome(*pieces: Piece, status: str = "200 OK") -> Completed | Failed:
    async with scripted(*pieces, status=status) as server, httpx.AsyncClient(base_url=server.url) as client:
        return await complete(client, JOB)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """The client's; it reads it when it sends, and with every piece of text."""
    clock = FakeTime()
    monkeypatch.setattr(timed, "time", clock)
    return clock


async def test_times_are_those_of_the_chunks_and_tokens_those_of_the_usage(clock: FakeTime) -> None:
    ran = await outcome(
        pause(clock, 0.2, reads=1),
        text("a"),
        pause(clock, 0.1, reads=2),
        text("b"),
        pause(clock, 0.3, reads=3),
        text("c"),
        pause(clock, 1.2, reads=4),
        usage(3),
        DONE,
    )
    assert isinstance(ran, Completed)
    assert ran.completion_tokens == 3
    assert ran.first_token == pytest.approx(0.2)
    assert ran.inter_token == pytest.approx(0.2)


async def test_several_tokens_in_one_chunk_are_counted_as_several(clock: FakeTime) -> None:
    ran = await outcome(text("abc"), pause(clock, 0.6, reads=2), text(""), usage(3), DONE)
    assert isinstance(ran, Completed)
    assert ran.inter_token == pytest.approx(0.3)


async def test_the_request_asks_for_greedy_full_length_answers_and_their_usage() -> None:
    async with scripted(text("a"), usage(3), DONE) as server, httpx.AsyncClient(base_url=server.url) as client:
        await complete(client, JOB)
    assert server.bodies == [
        {
            "model": "sql",
            "prompt": "river stone",
            "max_tokens": 3,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ((text("a"), usage(3)), "without [DONE]"),
        ((text("a"), DONE), "no usage"),
        ((usage(3), DONE), "no choices"),
        ((text("a"), usage(2), DONE), "2 tokens came, 3 were asked for"),
        ((text("a"), event(error={"message": "out of memory"}), DONE), "out of memory"),
        ((text("a"), b"data: {broken\n\n", DONE), "not JSON"),
        ((text("a"), b"data: 5\n\n", DONE), "not an object"),
    ],
)
async def test_a_broken_stream_is_a_failure_that_says_why(pieces: tuple[Piece, ...], reason: str) -> None:
    ran = await outcome(*pieces)
    assert isinstance(ran, Failed)
    assert reason in ran.reason


async def test_an_error_answer_and_a_server_that_is_not_there_are_failures() -> None:
    busy = await outcome(b'{"error": {"message": "too busy"}}', status="429 Too Many Requests")
    assert isinstance(busy, Failed)
    assert "429" in busy.reason
    assert "too busy" in busy.reason
    async with scripted() as server:
        pass
    async with httpx.AsyncClient(base_url=server.url) as client:
        gone = await complete(client, JOB)
    assert isinstance(gone, Failed)
    assert "ConnectError" in gone.reason


async def test_events_are_the_same_however_the_bytes_are_cut() -> None:
    strange = "é 😀 \u2028 \x85 data: [DONE]"
    stream = b": ping\n\nevent: x\n" + text(strange) + b'data:{"usage": 1}\r\n\r\n' + DONE + text("never seen")
    for size in (1, 2, 7, len(stream)):

        async def chunks(size: int = size):  # type: ignore[no-untyped-def]
            for start in range(0, len(stream), size):
                yield stream[start : start + size]

        events = [event async for event in read_events(chunks())]
        assert events[0]["choices"][0]["text"] == strange
        assert events[1:] == [{"usage": 1}]


async def test_a_stream_that_is_cut_anywhere_is_broken() -> None:
    stream = text("a") + usage(3) + DONE

    async def head(size: int):  # type: ignore[no-untyped-def]
        yield stream[:size]

    for size in range(len(stream) - len(b"\n\n")):
        with pytest.raises(BrokenStream):
            _ = [event async for event in read_events(head(size))]


async def test_a_round_keeps_as_many_requests_under_way_as_it_is_told_and_sends_each_once() -> None:
    todo = [Job("sql", f"prompt {number}", 3) for number in range(10)]
    told: list[None] = []
    async with scripted(crowd(4), 0.05, text("a"), text("b"), text("c"), usage(3), DONE) as server:
        ran = await run_round(server.url, todo, 4, lambda: told.append(None))
    assert server.most_open == 4
    assert sorted(body["prompt"] for body in server.bodies) == sorted(job.prompt for job in todo)
    assert [type(one) for one in ran.outcomes] == [Completed] * 10
    assert len(told) == 10
    assert ran.seconds > 0.1
