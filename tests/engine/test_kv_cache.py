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


@pytest.mark.parametrize("seed", range(5))
def test_nothing_leaks_over_random_calls(seed: int) -> None:
    chance = random.Random(seed)
    pool = BlockPool(num_blocks=200, block_tokens=4)
    reservation = pool.try_reserve(200)
    assert reservation is not None
    tables: list[BlockTable] = []
    for _ in range(300):
        action = chance.choice(["new", "grow", "fork", "free"])
        if action == "new" and pool.num_used < 150:
            tables.append(BlockTable(reservation))
        elif action == "grow" and tables and pool.num_used < 150:
            table = chance.choice(tables)
            pool.grow(table, len(table.blocks) * 4 + chance.randrange(1, 9))
        elif action == "fork" and tables and pool.num_used < 150:
            source = chance.choice(tables)
            tables.append(pool.fork(source, chance.randint(0, len(source.blocks) * 4))[0])
        elif action == "free" and tables:
            pool.free(tables.pop(chance.randrange(len(tables))))
        pool.check_integrity(tables)
    for table in tables:
        pool.free(table)
    pool.release(reservation)
    assert pool.num_used == 0
