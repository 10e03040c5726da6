"""The host cache: its budget at every moment, who goes first, and what a failed read leaves behind."""

import random

import pytest

from expert_store import CorruptStore, ExpertVersion
from server.engine.host_cache import HostCache
from server.errors import ExpertTooLarge
from tests.engine.disks import GatedDisk
from tests.support.catalogs import make_version


def of(name: str, weight_bytes: int = 10) -> ExpertVersion:
    return make_version(name, weight_bytes=weight_bytes)


def load(cache: HostCache, disk: GatedDisk, *experts: ExpertVersion) -> None:
    for expert in experts:
        before = len(disk.reads)
        if not cache.ready(expert, keep=()):
            disk.wait(before + 1)
        assert cache.ready(expert, keep=())


def test_what_is_here_is_not_read_again_and_says_so() -> None:
    disk = GatedDisk()
    cache = disk.cache(100)
    load(cache, disk, of("a"))
    first, second = cache.take(of("a")), cache.take(of("a"))
    assert (first.source, second.source) == ("disk", "host")
    assert first.read_seconds > second.read_seconds == 0
    assert disk.reads == ["a"]


def test_the_longest_not_taken_goes_first() -> None:
    disk = GatedDisk()
    cache = disk.cache(30)
    load(cache, disk, of("a"), of("b"), of("c"))
    for name in ("b", "c", "a"):
        cache.take(of(name))
    load(cache, disk, of("d"))
    load(cache, disk, of("c"), of("a"))
    assert disk.reads == ["a", "b", "c", "d"]
    load(cache, disk, of("b"))
    assert disk.reads[-1] == "b"


def test_a_read_counts_before_it_has_ended_and_is_not_dropped() -> None:
    disk = GatedDisk(gated=("slow",))
    cache = disk.cache(30)
    assert not cache.ready(of("slow", 25), keep=())
    assert cache.used_bytes == 25
    assert not cache.ready(of("late"), keep=())
    disk.let("slow")
    disk.wait(1)
    assert disk.reads == ["slow"]
    load(cache, disk, of("late"))
    assert cache.used_bytes == 10


def test_what_is_kept_makes_no_room() -> None:
    disk = GatedDisk()
    cache = disk.cache(20)
    load(cache, disk, of("a"), of("b"))
    keep = {of("a").digest, of("b").digest}
    assert not cache.ready(of("c"), keep=keep)
    assert disk.reads == ["a", "b"]
    assert cache.ready(of("a"), keep=keep)


def test_a_failed_read_is_told_once_and_leaves_nothing() -> None:
    disk = GatedDisk(broken=("a",))
    cache = disk.cache(20)
    cache.start(of("a", 20), keep=())
    disk.wait(1)
    with pytest.raises(CorruptStore, match="a@1 cannot be read any more: a cannot be read"):
        cache.ready(of("a", 20), keep=())
    assert cache.used_bytes == 0
    disk.broken.clear()
    disk.hold("a")
    assert not cache.ready(of("a", 20), keep=())
    disk.let("a")
    disk.wait(2)
    assert cache.ready(of("a", 20), keep=())


def test_a_failed_read_that_nobody_asks_about_gives_its_room_away() -> None:
    disk = GatedDisk(broken=("a",))
    cache = disk.cache(20)
    cache.start(of("a", 20), keep=())
    disk.wait(1)
    load(cache, disk, of("b", 20))
    assert cache.used_bytes == 20


def test_what_is_forgotten_is_gone_unless_it_is_being_read() -> None:
    disk = GatedDisk(gated=("slow",))
    cache = disk.cache(100)
    load(cache, disk, of("a"))
    assert not cache.ready(of("slow", 25), keep=())
    for expert in (of("a"), of("slow", 25), of("absent")):
        cache.forget(expert)
    assert cache.used_bytes == 25
    disk.let("slow")
    disk.wait(2)
    cache.forget(of("slow", 25))
    assert (cache.used_bytes, cache.digests) == (0, frozenset())
    cache.check_integrity()


def test_an_expert_larger_than_the_budget_is_refused_with_both_numbers() -> None:
    cache = GatedDisk().cache(200)
    cache.check_fits(of("right", 200))
    with pytest.raises(ExpertTooLarge, match=r"large@1 have 300 bytes.* holds 200"):
        cache.check_fits(of("large", 300))


@pytest.mark.parametrize("seed", range(5))
def test_the_budget_holds_whatever_is_asked(seed: int) -> None:
    chance = random.Random(seed)
    disk = GatedDisk(broken=("x3",))
    cache = disk.cache(100)
    experts = [of(f"x{index}", chance.randrange(1, 60)) for index in range(12)]
    for _ in range(300):
        expert, kept = chance.choice(experts), chance.sample(experts, 2)
        try:
            if cache.ready(expert, keep={other.digest for other in kept}) and chance.random() < 0.7:
                cache.take(expert)
        except CorruptStore:
            assert expert.name == "x3"
        cache.check_integrity()
        if chance.random() < 0.3:
            disk.quiet(cache)
    assert len(disk.reads) > len(experts)
