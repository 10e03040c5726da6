"""Grouped attention over the paged cache against one plain attention a segment."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from server.model import attention
from server.model.attention import Group, allowed_keys, attend_segment, paged_attention, plan_attention
from server.model.native import Kernels
from server.model.native_attention import families_of
from server.model.paged_kv import Borrowed, Call, KVGeometry, PagedKV, SegmentSpan

HEADS, KV_HEADS, WIDTH, CAPACITY = 6, 2, 16, 4
SHAPES = {
    "decodes": [(1, 7), (1, 0), (1, 30), (1, 31)],
    "probes": [(5, 12), (5, 13), (5, 40)],
    "prefills": [(40, 0), (23, 9)],
    "mixed": [(1, 3), (17, 0), (5, 8), (1, 70), (16, 4), (1, 0)],
}


def lay_out(shape: list[tuple[int, int]]) -> tuple[list[SegmentSpan], int]:
    """Spans of (queries, position), with their blocks scattered over the cache."""
    free = list(range(1, 120))
    random.Random(0).shuffle(free)
    spans, first = [], 0
    for num_queries, position in shape:
        blocks = [free.pop() for _ in range(-(-(num_queries + position) // CAPACITY))]
        spans.append(SegmentSpan(first, num_queries, position, blocks))
        first += num_queries
    return spans, first


def random_cache(dtype: torch.dtype, *, num_blocks: int) -> PagedKV:
    """One layer of random numbers, always the same, as are those drawn afterwards."""
    torch.manual_seed(0)
    geometry, device = KVGeometry(1, KV_HEADS, WIDTH), torch.device("cpu")
    kv = PagedKV(geometry=geometry, num_blocks=num_blocks, block_tokens=CAPACITY, dtype=dtype, device=device)
    kv.layers[0].normal_()
    return kv


@pytest.mark.parametrize("few_launches", [False, True])
@pytest.mark.parametrize("left", [torch.inf, 1e38, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_block_was_left_with_does_not_reach_its_next_owner(
    dtype: torch.dtype, left: float, few_launches: bool
) -> None:
    """Numbers of a broken expert lie behind the own keys of one sequence, and where a shorter one is filled up."""
    kv = random_cache(dtype, num_blocks=8)

    def attend(spans: list[SegmentSpan], kv_TKD: torch.Tensor) -> torch.Tensor:
        plan = plan_attention(spans, kv, few_launches=few_launches)
        query = torch.randn(len(kv_TKD), HEADS, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
        return plan.attend(0, query, kv_TKD, scale=0.3)

    signs = torch.randn(2 * CAPACITY, 2 * KV_HEADS, WIDTH).sign().to(dtype)
    healthy = torch.randn(2, 2 * KV_HEADS, WIDTH).to(dtype)
    spans = [SegmentSpan(0, 1, 0, [0]), SegmentSpan(1, 1, 5, [2, 3])]
    expected = attend(spans, healthy)
    attend([SegmentSpan(0, 2 * CAPACITY, 0, [0, 1])], signs * left)
    assert torch.equal(attend(spans, healthy), expected)


@pytest.mark.parametrize("few_launches", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_attention_equals_one_segment_at_a_time(
    shape: str, window: int | None, softcap: float | None, dtype: torch.dtype, few_launches: bool
) -> None:
    kv = random_cache(dtype, num_blocks=120)
    spans, total = lay_out(SHAPES[shape])
    query, key, value = (torch.randn(1, heads, total, WIDTH).to(dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))
    plan = plan_attention(spans, kv, few_launches=few_launches)
    output, _ = paged_attention(
        SimpleNamespace(layer_idx=0), query, key, value, None,
        scaling=0.3, sliding_window=window, softcap=softcap, attention_plan=plan,
    )  # fmt: skip

    for span in spans:
        tokens = slice(span.first_token, span.first_token + span.num_queries)
        keys, values = kv.layers[0][span.blocks].transpose(1, 2).flatten(0, 1)[: span.num_keys].chunk(2, dim=1)
        torch.testing.assert_close(keys[span.position :], key[0].transpose(0, 1)[tokens])
        mask = allowed_keys(torch.arange(span.position, span.num_keys), span.num_keys, window)
        expected = attend_segment(query[0].transpose(0, 1)[tokens], keys, values, mask=mask, scale=0.3, softcap=softcap)
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(output[0, tokens], expected, atol=tolerance, rtol=tolerance)


def test_few_launches_are_those_of_few_sizes() -> None:
    kv = filled_cache(CAPACITY)
    spans, _ = lay_out([(17, 0), (31, 9), (20, 20), (1, 70), (1, 60), (5, 8), (8, 8)])
    plan = plan_attention(spans, kv, few_launches=True)
    assert not plan.long_segments
    assert len(plan.groups) == 4  # prefills of up to 32 tokens in two lengths, decodes, probes


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_scores_in_pieces_are_those_of_all_queries_at_once(
    softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv = filled_cache(CAPACITY)
    spans, total = lay_out([(20, 7), (20, 31)])
    query = torch.randn(total, HEADS, 64).bfloat16()
    whole, in_pieces = torch.empty_like(query), torch.empty_like(query)
    call = Call(query, kv.layers[0], 0.3, 6, softcap)
    Group.of(spans, kv).attend(call, whole)
    monkeypatch.setattr(attention, "_SCORES", 3 * 2 * HEADS * 52)  # three queries at a time
    Group.of(spans, kv).attend(call, in_pieces)
    torch.testing.assert_close(in_pieces, whole, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("num_queries", [1, 5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_group_attends_by_torchs_operator_as_product_by_product(
    num_queries: int, window: int | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    geometry, cpu = KVGeometry(1, KV_HEADS, WIDTH), torch.device("cpu")
    kv = PagedKV(geometry=geometry, num_blocks=120, block_tokens=CAPACITY, dtype=dtype, device=cpu)
    kv.layers[0].normal_()
    spans, total = lay_out([(num_queries, position) for position in (7, 0, 30, 31)])
    query = torch.randn(total, HEADS, WIDTH).to(dtype)
    outputs = []
    for sdpa in (False, True):
        outputs.append(torch.full_like(query, torch.nan))
        Group.of(spans, kv, sdpa=sdpa).attend(Call(query, kv.layers[0], 0.3, window, None), outputs[-1])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(outputs[1], outputs[0], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_attend_as_one_segment_at_a_time(shape: str, window: int | None, width: int, kernels: Kernels) -> None:
    torch.manual_seed(0)
    kv = PagedKV(
        geometry=KVGeometry(1, KV_HEADS, width),
        num_blocks=120,
        block_tokens=CAPACITY,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    kv.layers[0].normal_()
    spans, total = lay_out(SHAPES[shape])
    qkv = torch.randn(total, HEADS + 2 * KV_HEADS, width).bfloat16()
    query = qkv[:, :HEADS]  # its tokens do not lie one behind the other
    output = plan_attention(spans, kv, kernels).read(0, query, scale=0.3, window=window)

    for span in spans:
        tokens = slice(span.first_token, span.first_token + span.num_queries)
        keys, values = kv.layers[0][span.blocks].transpose(1, 2).flatten(0, 1)[: span.num_keys].float().chunk(2, dim=1)
        mask = allowed_keys(torch.arange(span.position, span.num_keys), span.num_keys, window)
        expected = attend_segment(query[tokens].float(), keys, values, mask=mask, scale=0.3, softcap=None)
        torch.testing.assert_close(output[tokens].float(), expected, atol=2e-2, rtol=1e-2)


def check_kernels(spans: list[SegmentSpan], kv: PagedKV, window: int | None, kernels: Kernels, heads: int) -> None:
    """Every segment by itself, in fp32, against all of them in the kernel."""
    width = kv.layers[0].shape[-1]
    query = torch.randn(sum(span.num_queries for span in spans), heads, width).bfloat16()
    output = plan_attention(spans, kv, kernels).read(0, query, scale=0.3, window=window)
    for span in spans:
        tokens = slice(span.first_token, span.first_token + span.num_queries)
        keys, values = read_tokens(span, kv).float().chunk(2, dim=1)
        mask = allowed_keys(torch.arange(span.position, span.num_keys), span.num_keys, window)
        expected = attend_segment(query[tokens].float(), keys, values, mask=mask, scale=0.3, softcap=None)
        torch.testing.assert_close(output[tokens].float(), expected, atol=2e-2, rtol=1e-2)


def read_tokens(span: SegmentSpan, kv: PagedKV) -> Tensor:
    """[S, 2 K, D]: a sequence's keys and values, token by token."""
    rows = []
    for position in range(span.num_keys):
        index, inside = divmod(position, kv.block_tokens)
        block, lent = span.blocks[index], span.borrowed
        if lent is not None and index == lent.end // kv.block_tokens and position < lent.end:
            block = lent.block
        rows.append(kv.layers[0][block, :, inside])
    return torch.stack(rows)


def filled_cache(capacity: int, kv_heads: int = KV_HEADS, width: int = 64) -> PagedKV:
    geometry, cpu = KVGeometry(1, kv_heads, width), torch.device("cpu")
    kv = PagedKV(geometry=geometry, num_blocks=240, block_tokens=capacity, dtype=torch.bfloat16, device=cpu)
    kv.layers[0].normal_()
    return kv


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("capacity", [4, 16, 24, 80])
@pytest.mark.parametrize("num_forks", [2, 5, 40])
def test_forks_read_what_they_share_as_if_each_were_alone(
    num_forks: int, capacity: int, window: int | None, kernels: Kernels
) -> None:
    """Forks of one prompt with one to four tokens of their own, beside the prompt's end, a stranger, and a fork that
    shares less."""
    torch.manual_seed(0)
    kv = filled_cache(capacity)
    position, free = 5 * capacity + 3, iter(range(20, 240))
    shared = [3, 9, 1, 14, 7]
    spans = [SegmentSpan(0, 5, 3 * capacity, shared), SegmentSpan(5, 1, 3 * capacity, [*shared[:3], 15])]
    spans.append(SegmentSpan(6, 1, 2, [16]))
    first = 7
    for fork in range(num_forks):
        spans.append(SegmentSpan(first, 1 + fork % 4, position, [*shared, next(free), next(free)]))
        first += 1 + fork % 4
    families = [(len(family), num_shared) for family, num_shared in families_of(spans, kv, threads=1)]
    assert sum(size for size, _ in families) == len(spans)
    assert (min(num_forks + 1, 16), 3 * capacity) in families  # with the one that shares three blocks only
    assert {(len(family), n) for family, n in families_of(spans, kv, threads=64)} == {(1, 0)}, "work for all threads"
    check_kernels(spans, kv, window, kernels, HEADS)


@pytest.mark.parametrize("capacity", [4, 16, 24, 80])
@pytest.mark.parametrize("num_forks", [1, 5, 40])
@pytest.mark.parametrize("num_whole", [0, 5])
def test_forks_read_what_they_lack_where_it_comes_from(
    num_whole: int, num_forks: int, capacity: int, kernels: Kernels
) -> None:
    """Forks of two prompts that begin alike, each of which borrows the beginning of its parent's last block: with few
    tokens of their own, or many, or some that a segment before them has computed in the same step."""
    torch.manual_seed(0)
    kv = filled_cache(capacity)
    common, free = [3, 9, 1, 14, 7][:num_whole], iter(range(20, 240))
    end, spans, first = num_whole * capacity + 3, list[SegmentSpan](), 0
    for fork in range(num_forks):
        num_queries, done = (1 + fork % 4, fork % 2) if fork % 7 else (37, 0)
        own = [next(free) for _ in range(-(-(3 + done + num_queries) // capacity))]
        kv.layers[0][own[0], :, :3] = torch.nan  # what is borrowed was never copied here
        borrowed = Borrowed(11 + fork % 2, end)
        spans.append(SegmentSpan(first, num_queries, end + done, [*common, *own], borrowed))
        first += num_queries
    families = [(len(family), num_shared) for family, num_shared in families_of(spans, kv, threads=1)]
    assert sum(size for size, _ in families) == len(spans)
    assert {num_shared for _, num_shared in families} == {end}
    assert num_forks < 40 or max(size for size, _ in families) > 1
    check_kernels(spans, kv, None, kernels, HEADS)


@pytest.mark.parametrize("seed", range(40))
def test_segments_of_any_kind_on_every_level_of_processor(seed: int, every_kernels: list[Kernels]) -> None:
    """Widths that fill no register, blocks that fill no tile, windows longer than one, any number of heads to a key."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    capacity, kv_heads = rng.choice([1, 4, 16, 20, 64, 100]), rng.choice([1, 2, 3])
    kv = filled_cache(capacity, kv_heads, width=rng.choice([2, 20, 64, 72, 128]))
    free, spans, first = iter(rng.sample(range(240), 240)), [], 0
    common = [next(free) for _ in range(6)]
    window = rng.choice([None, 3, 50, 150])
    can_borrow = capacity > 1 and window is None
    lent = Borrowed(next(free), 5 * capacity + rng.randint(1, capacity - 1)) if can_borrow else None
    for _ in range(rng.randint(1, 9)):
        num_queries, own = rng.choice([1, 1, 2, 4, 5, 40]), rng.random() < 0.5
        position = rng.randint(0 if own else 6 * capacity, 7 * capacity)
        num_blocks = -(-(position + num_queries) // capacity)
        if num_blocks > 16:
            continue
        table = [next(free) for _ in range(num_blocks)]
        spans.append(SegmentSpan(first, num_queries, position, table if own else [*common, *table[6:]]))
        if lent is not None and not own and rng.random() < 0.5:
            spans[-1] = replace(spans[-1], blocks=[*common[:5], *table[5:]], borrowed=lent)
        first += num_queries
    if spans:
        for kernels in every_kernels:
            check_kernels(spans, kv, window, kernels, kv_heads * rng.choice([1, 2, 3, 4]))


def test_a_nan_in_a_query_reaches_its_own_answer_and_no_other(kernels: Kernels) -> None:
    kv = PagedKV(
        geometry=KVGeometry(1, KV_HEADS, 64),
        num_blocks=20,
        block_tokens=CAPACITY,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    spans = [SegmentSpan(0, 1, 6, [1, 2]), SegmentSpan(1, 1, 3, [3])]
    query = torch.randn(2, HEADS, 64).bfloat16()
    query[0, 0] = torch.nan
    output = plan_attention(spans, kv, kernels).read(0, query, scale=1.0)
    assert output[0, 0].isnan().all()
    assert output[0, 1:].isfinite().all()
    assert output[1].isfinite().all()


def test_mask_allows_the_past_within_the_window() -> None:
    allowed = allowed_keys(torch.tensor([2, 3]), 5, 2)
    assert allowed.tolist() == [[False, True, True, False, False], [False, False, True, True, False]]


def test_large_scores_are_not_rounded_in_bf16() -> None:
    """Scores around 30 would lose up to 0.1 each in bf16, which moves their weights by a tenth."""
    torch.manual_seed(1)
    geometry, cpu = KVGeometry(1, KV_HEADS, WIDTH), torch.device("cpu")
    kv = PagedKV(geometry=geometry, num_blocks=20, block_tokens=CAPACITY, dtype=torch.bfloat16, device=cpu)
    kv.layers[0].normal_()
    span = SegmentSpan(0, 1, 39, list(range(1, 11)))
    query, key, value = (torch.randn(1, heads, 1, WIDTH).bfloat16() for heads in (HEADS, KV_HEADS, KV_HEADS))
    output, _ = paged_attention(
        SimpleNamespace(layer_idx=0), query, key, value, None, scaling=3.0, attention_plan=plan_attention([span], kv)
    )
    keys, values = kv.layers[0][span.blocks].transpose(1, 2).flatten(0, 1).float().chunk(2, dim=1)
    mask = torch.ones(1, 40, dtype=torch.bool)
    exact = attend_segment(query[0].transpose(0, 1).float(), keys, values, mask=mask, scale=3.0, softcap=None)
    assert float((output[0].float() - exact).abs().max()) < 0.02
