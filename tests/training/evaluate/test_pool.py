"""One server plays pool after pool and router after router, and never mixes what belongs to another."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest

from server.own_server import own_server
from training.evaluate.adapters import Guarded, SeeExpert, TunedLora
from training.evaluate.answerers import Answer, Chain, TheBase
from training.evaluate.asking import Book, Questioner
from training.evaluate.budget import BUDGETS
from training.evaluate.elrea import ClusterExpert, cluster_experts
from training.evaluate.l2r import LearnedGates
from training.evaluate.pool import AskingFailed, Place, ServedPool
from training.evaluate.stream import Sample
from training.evaluate.units import BaseSource, Unit, Workshop

BUDGET = replace(BUDGETS["small"], rank=2, epochs=1, batch_size=8)
LETTERS = list(islice(combinations("bcdefghijk", 3), 60))
ROWS = tuple(
    Sample(f"{i}", ("fox", "cap")[i % 2], (f"the quick fox {i}", f"What is the capital? {i}")[i % 2], "yes")
    for i in range(12)
)


@pytest.fixture(scope="module")
def workshop(base_source: BaseSource, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("work"), base_source)


@pytest.fixture(scope="module")
def served(
    base_source: BaseSource, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedPool]:
    """One for all tests: whatever it has played before must make no difference."""
    folder = tmp_path_factory.mktemp("served")
    flags = ["--base", base_source.source, "--cache", str(base_source.cache), "--device", "cpu", "--no-demo"]
    with own_server(folder, *flags) as server:
        yield ServedPool(lambda: Place(server.url, folder / "store"), workshop)


def test_a_guarded_chain_is_asked_as_one_and_its_answers_are_kept_apart(served: ServedPool) -> None:
    plain, guarded = Chain(()), Chain((), guarded=True)
    assert plain.request(served, ROWS[0]) == {"router": "chain", "guard": False}
    assert guarded.request(served, ROWS[0]) == {"router": "chain", "guard": True}
    assert plain.identity(served, ROWS[0]) != guarded.identity(served, ROWS[0])


def test_guards_come_with_the_experts_and_are_heard(served: ServedPool, workshop: Workshop) -> None:
    own, others = (
        tuple(Sample(f"{word}/{i}", word, f"{word} {' '.join(some)}", "yes") for i, some in enumerate(LETTERS))
        for word in ("the quick fox", "What is the capital?")
    )
    expert = Guarded(SeeExpert("fox", own, others, "lora", BUDGET, 0))
    made(workshop, expert)
    for answerer, prompt, unfamiliar in (
        (Chain((expert,)), own[0], None),
        (Chain((expert,), guarded=True), own[0], 0),
        (Chain((expert,), guarded=True), others[0], 1),
    ):
        answerer.prepare(served)
        request = {"prompt": prompt.prompt, **answerer.request(served, prompt)}
        shortlist = served.send("POST", "/route", request)["routing"]["shortlist"]
        assert (shortlist and shortlist["unfamiliar"]) == unfamiliar


def test_what_the_book_holds_needs_no_server(workshop: Workshop, tmp_path: Path) -> None:
    class Started(Exception):
        pass

    def start() -> Place:
        raise Started

    book = Book(tmp_path / "answers.jsonl")
    questioner = Questioner(ServedPool(start, workshop), workshop, book)
    known, new = ROWS[:2]
    answer = Answer("yes", None, False, 7)
    book.look_up(questioner._digest(TheBase(), known, "answer 5"), lambda: asdict(answer))
    assert questioner.answers(TheBase(), [known], answer_tokens=5) == [answer]
    for asked in ([known, new], [new]):
        with pytest.raises(Started):
            questioner.answers(TheBase(), asked, answer_tokens=5)
        with pytest.raises(Started):
            questioner.costs(TheBase(), asked, answer_tokens=5)


def made(workshop: Workshop, *units: Unit) -> None:
    with ThreadPoolExecutor(1) as executor:
        workshop.run(units, executor, on_done=lambda _: None)


def routing(served: ServedPool, **request: Any) -> dict[str, Any]:
    body: dict[str, Any] = served.send("POST", "/route", {"prompt": "the quick fox 99", **request})
    found: dict[str, Any] = body["routing"]
    return found


def test_only_the_pool_last_named_is_mixed(served: ServedPool, workshop: Workshop) -> None:
    adapters = [TunedLora("multi-task", ROWS, BUDGET, seed) for seed in (1, 2)]
    pools: list[Sequence[ClusterExpert]] = [
        cluster_experts(adapters[0], 2, "birch"),
        cluster_experts(adapters[0], 2, "random"),
        cluster_experts(adapters[1], 2, "random"),
    ]
    made(workshop, *(expert for pool in pools for expert in pool))
    for number in (0, 1, 2, 0, 0, 2):
        experts = pools[number]
        served.mix(experts[0].adapter, experts)
        found = routing(served, router="gradient", gradient_experts=2)
        names = sorted(served.expert(expert) for expert in experts)
        assert sorted(considered["expert"] for considered in found["considered"]) == names
        assert sorted(share["expert"] for share in found["experts"]) == names


def test_each_router_weighs_its_own_experts(served: ServedPool, workshop: Workshop) -> None:
    experts = tuple(
        TunedLora(word, tuple(replace(row, task=word) for row in ROWS), BUDGET, seed)
        for seed, word in enumerate(("a", "b", "c"))
    )
    routers = [
        LearnedGates(over, tuple(row for expert in over for row in _renamed(expert)), "sigmoid", seed=1)
        for over in (experts[:2], experts[1:][::-1])
    ]
    made(workshop, *routers)
    for version, number in enumerate((0, 0, 1, 0)):
        router = routers[number]
        served.route_by(router, router.experts)
        found = routing(served, router="learned")
        assert {share["expert"] for share in found["experts"]} == {served.expert(expert) for expert in router.experts}
        [listed] = [entry for entry in served.send("GET", "/routers")["routers"] if entry["router"] == "learned"]
        assert listed["version"] == (1, 1, 2, 3)[version], "a router in use is not published again"


def test_what_the_server_refuses_is_said(served: ServedPool) -> None:
    with pytest.raises(AskingFailed, match=r"POST /route was answered 404.*nobody"):
        routing(served, expert="nobody")


def _renamed(expert: TunedLora) -> list[Sample]:
    """A memory's rows have ids of their own, and prompts that no other task has."""
    return [replace(row, id=f"{expert.label}/{row.id}", prompt=f"{expert.label} {row.prompt}") for row in expert.rows]
