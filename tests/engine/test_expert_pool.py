"""Whose turn it is for slots: a slow disk holds up nobody else, and whoever waits gets its turn."""

from server.engine.expert_pool import Access, ExpertPool
from server.engine.types import PoolEvent
from server.model.lora import LoraArenas
from tests.engine.disks import GatedDisk
from tests.support.catalogs import make_version


class Turns:
    """A pool over a fake disk, and the engine's part of it: jobs ask in order of arrival, each turn anew."""

    def __init__(self, disk: GatedDisk, *, num_slots: int, budget_bytes: int = 1000) -> None:
        self.disk = disk
        self.events: list[PoolEvent] = []
        self.pool = ExpertPool(
            LoraArenas([]),
            host=disk.cache(budget_bytes),
            num_slots=num_slots,
            slot_rank=8,
            on_event=self.events.append,
        )
        self.waiting: list[list[str]] = []
        self.running: list[list[str]] = []

    def arrive(self, *names: str) -> None:
        """A request for these experts together; `wide` in a name means two slots."""
        self.waiting.append(list(names))

    def turn(self) -> None:
        access = Access.FULL
        for names in list(self.waiting):
            pinned = self.pool.try_pin([self.expert(name) for name in names], access)
            if isinstance(pinned, Access):
                access = pinned
            else:
                assert len({slot for slots in pinned for slot in slots}) == sum(map(len, pinned))
                self.waiting.remove(names)
                self.running.append(names)
        self.pool.host.check_integrity()

    def settle(self) -> None:
        """Turns until they change nothing; reads at a gate stay there."""
        before: tuple[int, ...] = ()
        while before != (before := (len(self.disk.reads), len(self.events), len(self.running))):
            self.turn()
            self.disk.quiet(self.pool.host)
            self.turn()

    def finish(self, *names: str) -> None:
        self.running.remove(list(names))
        for name in names:
            self.pool.unpin(self.expert(name))

    def expert(self, name: str):  # type: ignore[no-untyped-def]
        return make_version(name, rank=16 if "wide" in name else 8, weight_bytes=100)


def test_a_slow_read_delays_neither_warm_nor_cold_experts() -> None:
    turns = Turns(GatedDisk(gated=("slow",)), num_slots=3)
    turns.arrive("warm")
    turns.settle()
    turns.finish("warm")
    for name in ("slow", "warm", "cold"):
        turns.arrive(name)
    turns.settle()
    assert turns.running == [["warm"], ["cold"]]
    turns.disk.let("slow")
    turns.settle()
    assert turns.running == [["warm"], ["cold"], ["slow"]]


def test_cold_experts_one_after_another_do_not_starve_one_that_waits() -> None:
    """The one that waits needs two slots side by side, each newcomer one; there are always two newcomers running."""
    turns = Turns(GatedDisk(), num_slots=2)
    turns.arrive("cold0")
    turns.arrive("cold1")
    turns.settle()
    turns.arrive("wide")
    for number in range(2, 12):
        turns.arrive(f"cold{number}")
        turns.settle()
        if ["wide"] in turns.running:
            break
        turns.finish(*turns.running[0])
        turns.settle()
    assert ["wide"] in turns.running
    assert number <= 4
    assert all(name in turns.waiting for name in (["cold2"], ["cold3"]))


def test_a_hot_expert_does_not_starve_a_cold_one() -> None:
    turns = Turns(GatedDisk(), num_slots=1)
    turns.arrive("hot")
    turns.settle()
    turns.arrive("cold")
    turns.settle()
    turns.arrive("hot")
    turns.settle()
    assert turns.running == [["hot"]]
    turns.finish("hot")
    turns.settle()
    assert turns.running == [["cold"]]
    turns.finish("cold")
    turns.settle()
    assert turns.running == [["hot"]]


def test_what_the_front_waits_for_is_not_evicted_by_those_behind() -> None:
    turns = Turns(GatedDisk(gated=("slow",)), num_slots=2, budget_bytes=300)
    turns.arrive("fast", "slow")
    turns.turn()
    turns.disk.wait(1)
    for number in range(6):
        turns.arrive(f"cold{number}")
        turns.settle()
        turns.finish(f"cold{number}")
    assert [event.ref for event in turns.events if event.kind == "evict"] == [f"cold{n}@1" for n in range(5)]
    turns.disk.let("slow")
    turns.settle()
    assert turns.running == [["fast", "slow"]]
    assert turns.disk.reads.count("fast") == 1


def test_a_window_larger_than_the_host_cache_is_brought_in_one_by_one() -> None:
    turns = Turns(GatedDisk(), num_slots=6, budget_bytes=100)
    turns.arrive("a", "wide-b", "c", "wide-d")
    turns.settle()
    assert turns.running == [["a", "wide-b", "c", "wide-d"]]
    assert turns.disk.reads == ["a", "wide-b", "c", "wide-d"]


def scattered(budget_bytes: int) -> Turns:
    """Three slots with a, b and c in them, none of them pinned."""
    turns = Turns(GatedDisk(), num_slots=3, budget_bytes=budget_bytes)
    for name in ("a", "b", "c"):
        turns.arrive(name)
        turns.settle()
    for name in ("a", "b", "c"):
        turns.finish(name)
    return turns


def test_scattered_slots_are_cleared_for_a_wide_expert_without_reading_anew() -> None:
    turns = scattered(budget_bytes=1000)
    turns.arrive("b", "wide")
    turns.settle()
    assert turns.running == [["b", "wide"]]
    assert turns.disk.reads == ["a", "b", "c", "wide"]


def test_nobody_gets_in_between_while_what_was_cleared_is_read_anew() -> None:
    turns = scattered(budget_bytes=200)
    turns.disk.hold("b")
    turns.arrive("b", "wide")
    turns.settle()
    assert turns.disk.reads[3:] == ["wide", "b"]
    turns.arrive("late")
    turns.settle()
    assert turns.running == []
    turns.disk.let("b")
    turns.settle()
    assert turns.running == [["b", "wide"]]


def test_loads_say_where_their_bytes_came_from() -> None:
    turns = Turns(GatedDisk(), num_slots=1)
    for name in ("a", "b", "a"):
        turns.arrive(name)
        turns.settle()
        turns.finish(name)
    loads = [(event.ref, event.source) for event in turns.events if event.kind == "load"]
    assert loads == [("a@1", "disk"), ("b@1", "disk"), ("a@1", "host")]


def test_prefetched_experts_are_pinned_at_once() -> None:
    turns = Turns(GatedDisk(), num_slots=4)
    turns.pool.prefetch([turns.expert("a"), turns.expert("b")])
    turns.disk.wait(2)
    turns.arrive("a", "b")
    turns.turn()
    assert turns.running == [["a", "b"]]


def test_what_is_read_ahead_makes_nobody_leave() -> None:
    turns = Turns(GatedDisk(), num_slots=1, budget_bytes=200)
    turns.arrive("a")
    turns.settle()
    turns.finish("a")
    reads = len(turns.disk.reads)
    turns.pool.look_ahead([turns.expert("b"), turns.expert("c"), turns.expert("a")])
    turns.disk.wait(reads + 1)
    assert turns.disk.reads[reads:] == ["b"]  # a is there, and c would not fit beside both


def test_a_candidate_becomes_its_version_where_it_lies() -> None:
    turns = Turns(GatedDisk(), num_slots=2)
    turns.arrive("candidate")
    turns.settle()
    turns.finish("candidate")
    turns.pool.adopt(turns.expert("candidate"), turns.expert("version"))
    turns.pool.host.check_integrity()
    turns.arrive("version")
    turns.settle()
    assert turns.running == [["version"]]
    assert turns.disk.reads == ["candidate"]
    assert turns.pool.num_used == 1
    turns.pool.adopt(turns.expert("nobody"), turns.expert("else"))  # left the memory meanwhile
    assert turns.pool.num_used == 1


def test_a_version_that_a_request_brought_in_first_stays_as_it_is() -> None:
    """Published is visible before the candidate is adopted."""
    turns = Turns(GatedDisk(), num_slots=2)
    turns.arrive("candidate")
    turns.settle()
    turns.finish("candidate")
    turns.arrive("version")
    turns.settle()
    turns.pool.adopt(turns.expert("candidate"), turns.expert("version"))
    turns.pool.host.check_integrity()
    turns.finish("version")
    assert turns.pool.num_used == 2
    turns.arrive("wide")  # takes both slots, so both must be given back
    turns.settle()
    assert turns.running == [["wide"]]
