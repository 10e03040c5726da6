"""Puts rows to a server of its own and keeps the answers, so that nothing is asked twice. Knows no methods, no scores.

Answers come from the serving engine over HTTP, greedily and a few at a time; what they cost is taken one at a time and
without the prefix cache, which would make it depend on who came before.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from server.environment import describe_machine
from server.own_server import own_server
from training.data import split_lines
from training.evaluate.answerers import Answer, Answerer, OutsideTheServer, Served
from training.evaluate.pool import Place, ServedPool
from training.evaluate.stream import Sample
from training.evaluate.units import BaseSource, Workshop

_AT_A_TIME = 16
_MAX_RANK = 128  # merged adapters have the sum of their parts' ranks


@dataclass(frozen=True)
class Cost:
    """Of one request alone on the server."""

    first_token_ms: float
    total_ms: float
    computed_tokens: int
    prompt_tokens: int


class Book:
    """Everything that was ever answered, one JSON line each; half a line, left by a crash, is passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in split_lines(path.read_text(encoding="utf-8")) if path.exists() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            self._known[entry["key"]] = entry["value"]

    def look_up(self, key: str, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The value kept by this key, or what `ask` says, which is kept from now on."""
        if key not in self._known:
            value = ask()
            line = json.dumps({"key": key, "value": value}, ensure_ascii=False)
            with self._lock, self._path.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}" if file.tell() else line)
                self._known[key] = value
        return self._known[key]

    def holds(self, key: str) -> bool:
        return key in self._known


class Questioner:
    """Asks through one server; what a book holds is not asked."""

    def __init__(self, pool: ServedPool, workshop: Workshop, book: Book) -> None:
        self._pool = pool
        self._workshop = workshop
        self._book = book

    def answers(self, answerer: Answerer, samples: Sequence[Sample], *, answer_tokens: int) -> list[Answer]:
        """One answer a sample, in their order."""
        if isinstance(answerer, OutsideTheServer):
            texts = json.loads((self._workshop.folder(answerer.answers) / OutsideTheServer.ANSWERS).read_text())
            return [Answer(texts[sample.id], None, False, None) for sample in samples]
        served = _served(answerer)

        def ask(sample: Sample) -> dict[str, Any]:
            request = {"prompt": sample.prompt, "max_new_tokens": answer_tokens, **served.request(self._pool, sample)}
            return asdict(self._answer(self._pool.send("POST", "/generate", request)))

        found = self._look_up_all(served, samples, f"answer {answer_tokens}", ask)
        return [Answer(**value) for value in found]

    def routes(self, answerer: Answerer, samples: Sequence[Sample]) -> list[str | None]:
        """Who would answer each sample; None is the base."""
        served = _served(answerer)

        def ask(sample: Sample) -> dict[str, Any]:
            request = {"prompt": sample.prompt, **served.request(self._pool, sample)}
            return {"expert": _unit_of(self._pool.send("POST", "/route", request))}

        return [value["expert"] for value in self._look_up_all(served, samples, "route", ask)]

    def costs(self, answerer: Answerer, samples: Sequence[Sample], *, answer_tokens: int) -> list[Cost]:
        """Of each sample alone; every expert has answered once before, so that none is being loaded."""
        served = _served(answerer)
        what = f"cost\n{answer_tokens}\n{json.dumps(describe_machine())}"
        keys = [self._digest(served, sample, what) for sample in samples]
        self._prepare(served, keys)

        def ask(sample: Sample) -> dict[str, Any]:
            request = {"prompt": sample.prompt, "max_new_tokens": answer_tokens, **served.request(self._pool, sample)}
            return self._cost(request)

        pairs = zip(keys, samples, strict=True)
        return [Cost(**self._book.look_up(key, partial(ask, sample))) for key, sample in pairs]

    def _prepare(self, served: Served, keys: Sequence[str]) -> None:
        """Before anything is asked that the book does not hold; the server is started for that alone."""
        if not all(self._book.holds(key) for key in keys):
            self._pool.ready()
            served.prepare(self._pool)

    def _cost(self, request: dict[str, Any]) -> dict[str, Any]:
        self._pool.send("POST", "/generate", request | {"max_new_tokens": 1})
        answer = self._pool.send("POST", "/generate", request)
        usage, timings = answer["usage"], answer["timings"]
        return asdict(
            Cost(timings["first_token_ms"], timings["total_ms"], usage["computed_tokens"], usage["prompt_tokens"])
        )

    def _look_up_all(
        self, served: Served, samples: Sequence[Sample], what: str, ask: Callable[[Sample], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        keys = [self._digest(served, sample, what) for sample in samples]
        self._prepare(served, keys)
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            pairs = zip(keys, samples, strict=True)
            return list(pool.map(lambda pair: self._book.look_up(pair[0], lambda: ask(pair[1])), pairs))

    def _digest(self, served: Served, sample: Sample, what: str) -> str:
        """Of everything that decides what is kept by it; the base too, which plays a part in every answer."""
        parts = (self._workshop.served_base, served.identity(self._pool, sample), what, sample.prompt)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]

    def _answer(self, body: Mapping[str, Any]) -> Answer:
        return Answer(
            text=body["text"],
            expert=_unit_of(body),
            fallback=body["routing"]["fallback"],
            computed_tokens=body["usage"]["computed_tokens"],
        )


@contextmanager
def questioner(base: BaseSource, workshop: Workshop, book: Book, *, prefix_cache: bool) -> Iterator[Questioner]:
    """Asks a server with an empty store, which the main thread starts when there is something to ask; it ends with the
    block."""
    flags = ["--base", base.source, "--cache", str(base.cache), "--device", base.device, "--no-demo"]
    flags += ["--max-rank", str(_MAX_RANK), "--expert-slots", str(_MAX_RANK)]
    flags += [] if prefix_cache else ["--no-prefix-cache"]
    with ExitStack() as ending:

        def start() -> Place:
            folder = Path(ending.enter_context(TemporaryDirectory()))
            server = ending.enter_context(own_server(folder, *flags))
            return Place(server.url, folder / "store")

        yield Questioner(ServedPool(start, workshop), workshop, book)


def _served(answerer: Answerer) -> Served:
    assert not isinstance(answerer, OutsideTheServer), f"{answerer} is not played by the server. This is a bug."
    return answerer  # type: ignore[return-value]


def _unit_of(body: Mapping[str, Any]) -> str | None:
    """The key of who answered, or of the expert with the largest weight; None is the base."""
    routing = body["routing"]
    name: str | None = routing["expert"]
    if routing["reason"] == "weighted":
        name = max(routing["experts"], key=lambda share: share["weight"])["expert"]
    return None if name is None else name.removeprefix("u-")
