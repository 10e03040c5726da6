"""Block bookkeeping: reservations, sharing, and that nothing is lost whatever the order of calls."""

import random

import pytest

from server.engine.kv_cache import BlockPool, BlockTable


def test_reservations_bound_what_is_admitted() -> None:
    pool = BlockPool(num_blocks=10, block_tokens=4)
    first = pool.try_reserve(7)
    assert first is not None
    assert pool.try_reserve(4) is None
    pool.release(first)
    assert pool.try_reserve(10) is not None


def test_a_fork_shares_full_blocks_and_copies_the_partial_one() -> None:
    pool = BlockPool(num_blocks=10, block_tokens=4)
    reservation = pool.try_reserve(10)
    assert reservation is not None
    table = BlockTable(reservation)
    pool.grow(table, 10)
    forked, copied = pool.fork(table, 10)
    assert forked.blocks[:2] == table.blocks[:2]
    assert copied == (table.blocks[2], forked.blocks[2])
    assert pool.num_used == 4
    aligned, nothing = pool.fork(table, 8)
    assert nothing is None
    assert pool.num_used == 4
    pool.free(table)
    assert pool.num_used == 3
    pool.check_integrity([forked, aligned])


def test_outgrowing_a_reservation_is_caught() -> None:
    pool = BlockPool(num_blocks=10, block_tokens=4)
    reservation = pool.try_reserve(2)
    assert reservation is not None
    with pytest.raises(AssertionError, match="outgrew"):
        pool.grow(BlockTable(reservation), 9)


def test_remembered_blocks_are_taken_over_until_their_room_is_needed() -> None:
    pool = BlockPool(num_blocks=4, block_tokens=4)
    first = pool.try_reserve(4)
    assert first is not None
    table = BlockTable(first)
    pool.grow(table, 12)
    begun = list(table.blocks)
    for block, key in zip(begun, (b"a", b"ab", b"abc"), strict=True):
        pool.remember(block, key)
    pool.free(table)
    assert pool.num_used == 0

    assert pool.adopt(table, [b"a", b"ab", b"x"]) == 2
    assert table.blocks == begun[:2]
    other = BlockTable(first)
    pool.grow(other, 8)  # the free block, then the one remembered block nobody holds
    pool.check_integrity([table, other])
    pool.free(table)
    pool.free(other)
    assert pool.adopt(table, [b"a", b"ab", b"abc"]) == 2


def test_the_end_of_a_sequence_is_forgotten_before_its_beginning() -> None:
    pool = BlockPool(num_blocks=3, block_tokens=4)
    reservation = pool.try_reserve(3)
    assert reservation is not None
    table = BlockTable(reservation)
    pool.grow(table, 12)
    for block, key in zip(table.blocks, (b"a", b"ab", b"abc"), strict=True):
        pool.remember(block, key)
    pool.free(table)
    other = BlockTable(reservation)
    pool.grow(other, 4)
    assert pool.adopt(table, [b"a", b"ab", b"abc"]) == 2


def test_sessions_that_share_a_block_each_count_it_against_their_own_reservation() -> None:
    pool = BlockPool(num_blocks=10, block_tokens=4)
    first, second = pool.try_reserve(2), pool.try_reserve(1)
    assert first is not None
    assert second is not None
    table, other = BlockTable(first), BlockTable(second)
    pool.grow(table, 4)
    pool.remember(table.blocks[0], b"a")
    assert pool.adopt(other, [b"a"]) == 1
    pool.free(table)
    pool.release(first)
    assert pool.num_used == 1
    with pytest.raises(AssertionError, match="outgrew"):
        pool.grow(other, 8)
    pool.free(other)
    pool.release(second)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_leaks_over_random_calls(seed: int) -> None:
    chance = random.Random(seed)
    pool = BlockPool(num_blocks=200, block_tokens=4)
    reservations = [pool.try_reserve(100), pool.try_reserve(100)]
    tables: list[BlockTable] = []
    for _ in range(600):
        action = chance.choice(["new", "grow", "fork", "remember", "adopt", "free", "free"])
        reservation = chance.choice(reservations)
        assert reservation is not None
        room = len(reservation.held) < 60
        own = [table for table in tables if table.reservation is reservation]
        if action == "new":
            tables.append(BlockTable(reservation))
        elif action == "grow" and own and room:
            table = chance.choice(own)
            pool.grow(table, len(table.blocks) * 4 + chance.randrange(1, 9))
        elif action == "fork" and own and room:
            source = chance.choice(own)
            tables.append(pool.fork(source, chance.randint(0, len(source.blocks) * 4))[0])
        elif action == "remember" and own:
            for block in chance.choice(own).blocks[:2]:
                pool.remember(block, b"%d" % chance.randrange(40))
        elif action == "adopt" and room:
            tables.append(BlockTable(reservation))
            pool.adopt(tables[-1], [b"%d" % chance.randrange(40) for _ in range(3)])
        elif action == "free" and tables:
            pool.free(tables.pop(chance.randrange(len(tables))))
        pool.check_integrity(tables)
    for table in tables:
        pool.free(table)
    for reservation in reservations:
        assert reservation is not None
        pool.release(reservation)
    assert pool.num_used == 0
