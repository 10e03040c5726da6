"""The swap benchmark: streams and routes as a server may answer them, then all of it against a real one."""

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from benchmarks import generation
from benchmarks.generation import Heard, Unheard, listen
from benchmarks.lifecycle import Lifecycle, RouteFailed
from benchmarks.swap import load
from benchmarks.swap.__main__ import main
from benchmarks.swap.known import Known
from benchmarks.swap.load import Phase, run_phase, summarise
from benchmarks.swap.swapping import Swap, Swapper, swap_once, swap_steadily, time_registration
from expert_store import ADAPTER_FILES
from tests.benchmarks.scripted import Piece, Scripted, crowd, pause, scripted
from tests.support import tiny
from tests.support.clocks import FakeTime, HeldTime


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def token(text: str) -> bytes:
    return event("token", {"text": text})


def done(ref: str = "moving@3", tokens: int = 2) -> bytes:
    name, _, version = ref.partition("@")
    return event("done", {"routing": {"expert": name, "version": int(version)}, "usage": {"completion_tokens": tokens}})


async def heard(*pieces: Piece, status: str = "200 OK") -> Heard | Unheard:
    async with scripted(*pieces, status=status) as server, httpx.AsyncClient(base_url=server.url) as client:
        return await listen(client, {"prompt": "x"})


@pytest.mark.anyio
async def test_an_answer_is_its_text_its_version_and_the_times_between_its_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeTime()  # which is read with every piece of text
    monkeypatch.setattr(generation, "time", clock)
    answer = await heard(
        event("routing", {}),
        pause(clock, 0.2, reads=0),
        token("é\u2028"),
        pause(clock, 0.1, reads=1),
        token("b"),
        pause(clock, 0.3, reads=2),
        token("c"),
        pause(clock, 0.5, reads=3),
        done(tokens=9),
    )
    assert isinstance(answer, Heard)
    assert (answer.ref, answer.text, answer.completion_tokens) == ("moving@3", "é\u2028bc", 9)
    assert answer.gaps == pytest.approx((0.1, 0.3))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("pieces", "status", "reason"),
    [
        ((token("a"),), "200 OK", "without a done event"),
        ((token("a"), event("error", {"message": "gone"}), done()), "200 OK", "gone"),
        ((b"too busy",), "429 Too Many Requests", "429"),
    ],
)
async def test_an_answer_that_is_not_whole_says_why(pieces: tuple[Piece, ...], status: str, reason: str) -> None:
    answer = await heard(*pieces, status=status)
    assert isinstance(answer, Unheard)
    assert reason in answer.reason


@pytest.mark.anyio
async def test_a_phase_ends_when_its_time_is_over_and_keeps_its_places_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known({"moving@3": 0}, {(0, 0): "ab", (0, 1): "other"})
    asks = cycle([(0, {"prompt": "p"}), (1, {"prompt": "q"})])
    times: list[float] = []
    clock = FakeTime()
    monkeypatch.setattr(load, "time", clock)

    async def move(_: Scripted) -> None:
        clock.sleep(0.1)

    async with (
        scripted(crowd(2), token("a"), 0.1, token("b"), move, done()) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        phase = await run_phase(client, asks, known, seconds=0.5, concurrency=2, on_time=times.append)
    assert server.most_open == 2
    assert 0.5 <= phase.seconds < 2
    assert phase.answers == len(server.bodies) == len(times)
    assert phase.changed == sum(body["prompt"] == "q" for body in server.bodies)
    assert phase.failures == {}
    assert 0.05 < phase.gap_p50 <= phase.gap_p95


@pytest.mark.anyio
async def test_a_phase_in_which_nothing_is_answered_says_so() -> None:
    asks = cycle([(0, {"prompt": "p"})])
    busy = scripted(b"", status="503 Service Unavailable")
    async with busy as server, httpx.AsyncClient(base_url=server.url) as client:
        with pytest.raises(RouteFailed, match="503"):
            await run_phase(client, asks, Known(), seconds=0.3, concurrency=2, on_time=lambda _: None)


def test_percentiles_are_over_all_gaps_and_texts_are_those_of_their_versions() -> None:
    known = Known({"moving@1": 0, "moving@2": 1}, {(0, 0): "a", (1, 0): "b"})
    answers = [
        (0, Heard("moving@1", "a", tuple(number / 100 for number in range(101)), 60)),
        (0, Heard("moving@2", "a", (), 40)),  # the text of another version
    ]
    phase = summarise(10.0, answers, {"late": 2}, known)
    assert (phase.answers, phase.changed, phase.failures) == (2, 1, {"late": 2})
    assert (phase.gap_p50, phase.gap_p95) == (pytest.approx(0.5), pytest.approx(0.95))
    assert phase.tokens_per_second == 10


class FakeRoutes:
    """The expert routes, with versions that exist or not; `broken` are methods that answer 500."""

    def __init__(self, *, broken: str = "", seen_after: int = 1) -> None:
        self.broken = broken
        self.seen_after = seen_after
        self.versions: set[int] = {1}
        self.live: int | None = 1
        self.newest = 1
        self.calls: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(f"{request.method} {request.url.path}")
        if request.method == self.broken:
            return httpx.Response(500, text="disk full")
        return httpx.Response(200, json=self._answer(request))

    def _answer(self, request: httpx.Request) -> dict[str, Any]:
        if request.url.path == "/experts":
            self.newest += 1
            self.versions.add(self.newest)
            return {"version": self.newest}
        if request.url.path == "/route":
            self.seen_after -= 1
            considered = [{"expert": "fresh", "version": self.newest}] if self.seen_after <= 0 else []
            return {"routing": {"considered": considered}}
        if request.method == "PUT":
            self.live = json.loads(request.content)["version"]
        elif "aliases" in request.url.path:
            self.live = None
        else:
            self.versions.remove(int(request.url.path.rpartition("/")[2]))
        return {}


@pytest.fixture
def lifecycle(tmp_path: Path) -> Callable[[FakeRoutes], Lifecycle]:
    for name in ADAPTER_FILES:
        (tmp_path / name).write_bytes(b"x")

    def build(routes: FakeRoutes) -> Lifecycle:
        return Lifecycle(httpx.Client(transport=httpx.MockTransport(routes), base_url="http://fake"), [tmp_path] * 3)

    return build


def test_a_registration_lasts_until_a_dry_run_shows_it_and_leaves_nothing(
    lifecycle: Callable[[FakeRoutes], Lifecycle],
) -> None:
    routes = FakeRoutes(seen_after=3)
    timed = time_registration(lifecycle(routes), 0)
    assert 0 < timed.registered < timed.routable
    assert routes.calls.count("POST /route") == 3
    assert (routes.versions, routes.live) == ({1}, None)


def test_a_registration_nobody_ever_sees_is_a_failure(lifecycle: Callable[[FakeRoutes], Lifecycle]) -> None:
    with pytest.raises(RouteFailed, match="no dry run"):
        time_registration(lifecycle(FakeRoutes(seen_after=10**9)), 0, patience=0.1)


def test_a_swap_registers_moves_and_deletes_and_is_known_before_it_is_live(
    lifecycle: Callable[[FakeRoutes], Lifecycle],
) -> None:
    routes, known = FakeRoutes(), Known()
    swap, live = swap_once(lifecycle(routes), known, 1, 2)
    assert (swap.failure, live, routes.live, routes.versions) == (None, 2, 2, {2})
    assert known.adapter_of == {"moving@2": 2}
    assert routes.calls == ["POST /experts", "PUT /experts/moving/aliases/live", "DELETE /experts/moving/versions/1"]


@pytest.mark.parametrize(("broken", "live"), [("POST", 1), ("PUT", 1), ("DELETE", 2)])
def test_a_swap_that_fails_says_why_and_which_version_is_live(
    broken: str, live: int, lifecycle: Callable[[FakeRoutes], Lifecycle]
) -> None:
    routes = FakeRoutes(broken=broken)
    swap, now_live = swap_once(lifecycle(routes), Known(), 1, 0)
    assert swap.failure is not None
    assert "disk full" in swap.failure
    assert now_live == routes.live == live


def test_swaps_keep_to_their_period_until_they_are_told_to_stop(lifecycle: Callable[[FakeRoutes], Lifecycle]) -> None:
    class StopAfter(Event):
        """Asked for the third time, it has been set; and nobody waits in a test."""

        def __init__(self) -> None:
            super().__init__()
            self.waits: list[float | None] = []

        def wait(self, timeout: float | None = None) -> bool:
            self.waits.append(timeout)
            return len(self.waits) == 3

    stop = StopAfter()
    swaps, live = swap_steadily(lifecycle(FakeRoutes()), Known(), 1, cycle(range(3)), period=60.0, stop=stop)
    assert live == 3
    assert all(isinstance(swap, Swap) and swap.failure is None for swap in swaps)
    assert len(swaps) == 2
    waits = [timeout or 0.0 for timeout in stop.waits]
    assert waits == sorted(waits)
    assert 50 < waits[0] <= 60
    assert 160 < waits[2] <= 180


@pytest.fixture
def eventful_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    """None ends before four answers, nor before a swap, where those have begun; however slow they are here."""
    clock, begin = HeldTime(), Swapper.begin
    heard: list[Heard] = []
    versions = 0  # that there were when swaps began

    async def counted(client: httpx.AsyncClient, request: Mapping[str, Any]) -> Heard | Unheard:
        outcome = await listen(client, request)
        if isinstance(outcome, Heard):
            heard.append(outcome)
        return outcome

    def noted(swapper: Swapper) -> None:
        nonlocal versions
        versions = len(swapper.known.adapter_of)
        begin(swapper)

    async def held(
        client: httpx.AsyncClient, asks: Iterator[Any], known: Known, *, seconds: float, **more: Any
    ) -> Phase:
        before = len(heard)
        clock.begin_phase(seconds, lambda: len(heard) >= before + 4 and len(known.adapter_of) > versions)
        return await run_phase(client, asks, known, seconds=seconds, **more)

    monkeypatch.setattr(load, "time", clock)
    monkeypatch.setattr(load, "listen", counted)
    monkeypatch.setattr(load, "run_phase", held)
    monkeypatch.setattr(Swapper, "begin", noted)


@pytest.mark.usefixtures("eventful_phases")
def test_a_server_on_a_tiny_base_is_measured_and_everything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.write_base(tmp_path / "base")
    where = ["--base", str(base), "--cache", str(tmp_path / "cache"), "--label", "tiny", "--dtype", "fp32"]
    sizes = [
        "--registrations",
        "2",
        "--rounds",
        "2",
        "--seconds",
        "2",
        "--period",
        "0.3",
        "--concurrency",
        "3",
        "--rank",
        "2",
    ]
    work = ["--adapters", "2", "--prompts", "2", "--prompt-words", "4", "--max-tokens", "6"]
    assert main([*where, *sizes, *work], results=tmp_path) == 0
    printed = capsys.readouterr().out
    assert "2 registrations of rank 2" in printed
    assert "inter-token p95" in printed
    assert "changed texts" in printed
    result = json.loads((tmp_path / "tiny.json").read_text())
    assert [one["registered"] < one["routable"] for one in result["registrations"]["each"]] == [True, True]
    assert len(result["rounds"]) == 2
    for one in result["rounds"]:
        assert one["swaps"]
        assert all(swap["failure"] is None for swap in one["swaps"])
        for phase in (one["quiet"], one["swapping"]):
            assert phase["answers"] > 3
            assert (phase["failures"], phase["changed"]) == ({}, 0)
    ratios = [one["swapping"]["gap_p95"] / one["quiet"]["gap_p95"] for one in result["rounds"]]
    over_all = result["gap_p95_ratio"]
    assert (over_all["low"], over_all["high"]) == (pytest.approx(min(ratios)), pytest.approx(max(ratios)))


@pytest.mark.parametrize("wrong", [["--period", "0"], ["--max-tokens", "1"], ["--label", "a/b"], ["--adapters", "0"]])
def test_options_that_make_no_sense_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(wrong)
    assert refused.value.code == 2
