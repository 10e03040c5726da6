"""Centroids made in the background: one after the other, kept, and given up where that is impossible."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from structlog.testing import capture_logs
from transformers import AutoTokenizer

from expert_store import BASE_ALIAS, Catalog, Expert, ExpertVersion, FileRecord, InvalidAdapter, Vector, read_centroid
from server import made_centroids
from server.errors import InvalidRequest, NonFiniteGradient
from server.made_centroids import MadeCentroids, pause_seconds
from server.model.chat import ChatFormat, Prompt
from server.model.sketch import Projection
from server.routing.gradient import Census, take_census
from tests.support import tiny
from tests.support.catalogs import make_version

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    return ChatFormat(AutoTokenizer.from_pretrained(folder))


class Source:
    """Every prompt's gradient points where its length says; prompts with the word in `broken` have none."""

    base_fingerprint = "sha256:0"
    feature = "test/1"

    def __init__(self, chat: ChatFormat, broken: str | None = None, failure: Exception | None = None) -> None:
        self.asked: list[str] = []
        self.running = self.most_running = 0
        self._chat = chat
        self._broken = broken
        self._failure = failure or InvalidRequest("no gradient")

    def mend(self) -> None:
        self._broken = None

    async def of(self, base: ExpertVersion, prompt: Prompt, *, width: int, seed: int) -> Vector:  # noqa: ARG002
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        text = str(self._chat._tokenizer.decode(prompt.tokens))
        self.asked.append(text)
        if self._broken is not None and self._broken in text:
            raise self._failure
        vector_D = np.zeros(width, np.float32)
        vector_D[len(prompt.tokens) % width] = 1
        return vector_D


def expert(name: str, *samples: str) -> ExpertVersion:
    version = make_version(name, kind="lora", indicators=False)
    return replace(version, manifest=version.manifest.model_copy(update={"samples": samples}))


def catalog_of(*experts: ExpertVersion, weights: str = "1", generation: int = 1) -> Catalog:
    """With a base adapter of these weights."""
    plain = make_version("base", kind="lora", indicators=False)
    files = dict.fromkeys(plain.manifest.files, FileRecord(sha256=weights * 64, size_bytes=1))
    bearer = replace(plain, manifest=plain.manifest.model_copy(update={"files": files}))
    entries = {e.name: Expert(e.name, {1: e}, {"live": 1}) for e in experts}
    entries["base"] = Expert("base", {1: bearer}, {"live": 1, BASE_ALIAS: 1})
    return Catalog(generation, MappingProxyType(entries))


def census_of(catalog: Catalog) -> Census:
    census = take_census(catalog, base_fingerprint="sha256:0", feature="test/1")
    assert isinstance(census, Census)
    return census


@asynccontextmanager
async def keeping_up(made: MadeCentroids, catalog: Callable[[], Catalog]) -> AsyncIterator[None]:
    task = asyncio.create_task(made.keep_up(catalog))
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def until_done(made: MadeCentroids, catalog: Catalog) -> None:
    async with asyncio.timeout(30):
        while made.num_pending(census_of(catalog)):
            await asyncio.sleep(0.01)


async def test_all_are_made_one_sample_at_a_time_and_kept(chat: ChatFormat, tmp_path: Path) -> None:
    source = Source(chat)
    made = MadeCentroids(tmp_path, source, chat)
    catalog = catalog_of(expert("one", "fox", "the lazy dog"), expert("two", "0123"), expert("silent"))
    census = census_of(catalog)
    one, two = census.wanting
    assert (made.num_pending(census), made.get(one, census)) == (2, None)
    async with keeping_up(made, lambda: catalog):
        await until_done(made, catalog)
    assert (len(source.asked), source.most_running, made.revision) == (3, 1, 2)
    centroid = made.get(one, census)
    assert centroid is not None
    assert (centroid.origin, len(centroid.vector_D)) == (census.origin, Projection().width)
    assert sorted(centroid.vector_D[centroid.vector_D > 0]) == pytest.approx([2**-0.5] * 2)

    again = MadeCentroids(tmp_path, idle := Source(chat), chat)
    async with keeping_up(again, lambda: catalog):
        await until_done(again, catalog)
    assert idle.asked == []
    for version in (one, two):
        kept, first = again.get(version, census), made.get(version, census)
        assert kept is not None
        assert first is not None
        np.testing.assert_array_equal(kept.vector_D, first.vector_D)


async def test_what_is_damaged_on_disk_is_made_again(chat: ChatFormat, tmp_path: Path) -> None:
    catalog = catalog_of(expert("one", "fox"))
    made = MadeCentroids(tmp_path, Source(chat), chat)
    async with keeping_up(made, lambda: catalog):
        await until_done(made, catalog)
    [kept] = (tmp_path / "centroids").iterdir()
    whole = read_centroid(kept)
    kept.write_bytes(kept.read_bytes()[:-1])
    source = Source(chat)
    again = MadeCentroids(tmp_path, source, chat)
    async with keeping_up(again, lambda: catalog):
        await until_done(again, catalog)
    assert len(source.asked) == 1
    np.testing.assert_array_equal(read_centroid(kept).vector_D, whole.vector_D)


@pytest.mark.parametrize("failure", [InvalidRequest("no gradient"), NonFiniteGradient(0.0)])
async def test_one_that_can_never_be_made_is_given_up_and_the_others_are_made(
    chat: ChatFormat, tmp_path: Path, failure: Exception
) -> None:
    source = Source(chat, broken="dog", failure=failure)
    made = MadeCentroids(tmp_path, source, chat)
    catalog = catalog_of(expert("bad", "the lazy dog"), expert("good", "fox"))
    census = census_of(catalog)
    async with keeping_up(made, lambda: catalog):
        await until_done(made, catalog)
        await asyncio.sleep(0.6)  # one more look
    assert [made.get(version, census) is None for version in census.wanting] == [True, False]
    assert len(source.asked) == 2, "it is not tried again and again"
    assert made.problems(census) == (f"bad@1 gets no centroid: {failure}",)


@pytest.mark.parametrize(
    "failure", [OSError("gone"), InvalidAdapter("adapter_model.safetensors", "unreadable"), RuntimeError("a bug")]
)
async def test_what_may_pass_is_tried_again_behind_the_others(
    chat: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr(made_centroids, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(made_centroids, "_FIRST_PAUSE_SECONDS", 0.2)
    source = Source(chat, broken="dog", failure=failure)
    made = MadeCentroids(tmp_path, source, chat)
    catalog = catalog_of(expert("bad", "the lazy dog"), expert("good", "fox"))
    census = census_of(catalog)
    bad, good = census.wanting
    async with keeping_up(made, lambda: catalog):
        async with asyncio.timeout(30):
            while made.get(good, census) is None:
                await asyncio.sleep(0.01)
        assert (made.num_pending(census), made.get(bad, census)) == (1, None), "it still waits"
        [problem] = made.problems(census)
        assert problem.startswith("the centroid of bad@1 could not be made yet and is tried again: ")
        source.mend()
        await until_done(made, catalog)
    assert made.get(bad, census) is not None
    assert made.problems(census) == ()


def test_the_pause_grows_up_to_a_bound() -> None:
    pauses = [pause_seconds(failures) for failures in (1, 2, 3, 20, 10_000)]
    assert pauses[:3] == [5, 10, 20]
    assert pauses[3:] == [600, 600]


async def test_what_is_no_longer_wanted_is_forgotten(chat: ChatFormat, tmp_path: Path) -> None:
    made = MadeCentroids(tmp_path, Source(chat, broken="dog"), chat)
    many = catalog_of(expert("one", "fox"), expert("two", "0123"), expert("bad", "dog"))
    current = many
    async with keeping_up(made, lambda: current):
        await until_done(made, current)
        assert made.revision == len(made._known) == 3
        current = catalog_of(expert("two", "0123"), generation=2)
        async with asyncio.timeout(30):
            while len(made._known) > 1:
                await asyncio.sleep(0.01)
    two = census_of(current).wanting[0]
    assert made.get(two, census_of(current)) is not None
    assert made.revision == 3, "it never goes back"


async def test_another_chat_template_asks_for_others(chat: ChatFormat, tmp_path: Path) -> None:
    catalog = catalog_of(expert("one", "fox"))
    other = ChatFormat(chat._tokenizer, template="{% for m in messages %}{{ m['content'] }}{% endfor %} dog")
    for template, asked in ((chat, 1), (other, 1), (chat, 0)):
        made = MadeCentroids(tmp_path, source := Source(template), template)
        async with keeping_up(made, lambda: catalog):
            await until_done(made, catalog)
        assert len(source.asked) == asked


async def test_a_template_that_refuses_the_samples_is_said(chat: ChatFormat, tmp_path: Path) -> None:
    strict = ChatFormat(chat._tokenizer, template="{{ raise_exception('no') }}")
    made = MadeCentroids(tmp_path, Source(strict), strict)
    catalog = catalog_of(expert("one", "fox"))
    async with keeping_up(made, lambda: catalog):
        await until_done(made, catalog)
    [problem] = made.problems(census_of(catalog))
    assert "one@1 gets no centroid: the base model's chat template refuses its samples" in problem


async def test_a_failed_write_leaves_nothing_behind(
    chat: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: Path, _target: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", full)
    made = MadeCentroids(tmp_path, Source(chat), chat)
    catalog = catalog_of(expert("one", "fox"))
    async with keeping_up(made, lambda: catalog):
        await until_done(made, catalog)
    assert list((tmp_path / "centroids").iterdir()) == []


async def test_what_a_crash_left_half_written_is_swept_at_the_start(chat: ChatFormat, tmp_path: Path) -> None:
    folder = tmp_path / "centroids"
    folder.mkdir()
    old, young = folder / "a.1.new", folder / "b.2.new"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    async with keeping_up(MadeCentroids(tmp_path, Source(chat), chat), Catalog):
        async with asyncio.timeout(30):
            while old.exists():
                await asyncio.sleep(0.01)
    assert young.exists(), "another process may be writing it"


async def test_a_task_that_dies_is_logged(chat: ChatFormat, tmp_path: Path) -> None:
    def gone() -> Catalog:
        raise RuntimeError("no catalog")

    with capture_logs() as logs:
        task = MadeCentroids(tmp_path, Source(chat), chat).start(gone)
        with pytest.raises(RuntimeError):
            await task
        await asyncio.sleep(0)
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("centroids_ended", "error")]


async def test_a_folder_that_cannot_be_written_costs_nothing_but_the_keeping(chat: ChatFormat, tmp_path: Path) -> None:
    (tmp_path / "centroids").write_text("in the way")
    made = MadeCentroids(tmp_path, Source(chat), chat)
    catalog = catalog_of(expert("one", "fox"))
    async with keeping_up(made, lambda: catalog):
        await until_done(made, catalog)
    census = census_of(catalog)
    assert made.get(census.wanting[0], census) is not None


async def test_a_change_of_the_catalog_is_noticed_and_another_base_adapter_asks_anew(
    chat: ChatFormat, tmp_path: Path
) -> None:
    source = Source(chat)
    made = MadeCentroids(tmp_path, source, chat)
    current = Catalog()
    async with keeping_up(made, lambda: current):
        await asyncio.sleep(0.05)
        assert source.asked == []
        for generation, weights in ((1, "1"), (2, "2"), (3, "1")):
            current = catalog_of(expert("one", "fox"), weights=weights, generation=generation)
            await until_done(made, current)
    assert len(source.asked) == 2, "the third is read"
    assert made.revision == 3
