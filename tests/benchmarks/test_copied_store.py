"""What of a store is copied, and how long a benchmark waits for routers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import copied_store
from benchmarks.copied_store import NotMeasurable, copy_store, require_routers
from tests.support.clocks import FakeTime


def test_experts_may_have_the_names_of_what_is_left_out(tmp_path: Path) -> None:
    kept = ["catalog.json", *(f"experts/{name}/1/manifest.json" for name in ("staging", "claims", "a.lock", "sql"))]
    left_out = ["staging/x/manifest.json", "claims/x.lock", "catalog.lock"]
    for path in (*kept, *left_out):
        (tmp_path / "store" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "store" / path).write_text(path)
    copy_store(tmp_path / "store", tmp_path / "copy")
    copied = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert copied == set(kept)


def gradient(*, ready: bool, pending: int, **more: Any) -> dict[str, Any]:
    plain = {"router": "gradient", "ready": ready, "pending": pending, "missing": [], "problems": [], "run": None}
    return {**plain, **more}


def saying(*routers: dict[str, Any]) -> tuple[httpx.Client, list[dict[str, Any]]]:
    """A server that says one after the other, and the last again and again; and what it has said."""
    said: list[dict[str, Any]] = []
    answers: Iterator[dict[str, Any]] = iter(routers)

    def answer(_: httpx.Request) -> httpx.Response:
        said.append(next(answers, routers[-1]))
        other = {"router": "learned", "ready": False, "pending": 9, "missing": ["all"], "problems": [], "run": None}
        return httpx.Response(200, json={"routers": [said[-1], other]})

    return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://fake"), said


def test_it_waits_until_nothing_is_pending_though_the_router_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied_store, "_LOOK_SECONDS", 0.001)
    client, said = saying(*(gradient(ready=True, pending=number) for number in (2, 1, 0)))
    require_routers(client, ["gradient"])
    assert len(said) == 3


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied_store, "time", FakeTime())
    client, said = saying(gradient(ready=True, pending=2, problems=["a@1: disk full"]))
    with pytest.raises(NotMeasurable, match=r"gradient still waits for 2 centroids after 0.01 s; a@1: disk full"):
        require_routers(client, ["gradient"], patience_seconds=0.01)
    assert len(said) == 2


def test_what_nobody_is_making_is_told_at_once() -> None:
    client, said = saying(gradient(ready=False, pending=0, missing=["no base"], run="relay x"))
    with pytest.raises(NotMeasurable, match="router gradient is not ready: no base: run `relay x`"):
        require_routers(client, ["gradient"])
    assert len(said) == 1
