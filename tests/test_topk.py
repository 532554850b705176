"""The chunked ranking against a plain sort of the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distft import topk
from distft.topk import MISS, target_ranks, top_k


def plain_order(s_BN: np.ndarray, excluded: list[np.ndarray]) -> list[list[int]]:
    """Item rows of each history from best to worst; ties to the lower row; reserved and excluded rows left out."""
    orders = []
    for s_N, out in zip(s_BN, excluded, strict=True):
        rows = [row for row in range(2, len(s_N)) if row not in set(out.tolist())]
        orders.append(sorted(rows, key=lambda row: (-s_N[row], row)))
    return orders


@settings(max_examples=60, deadline=None)
@given(
    num_items=st.integers(3, 60),
    batch_size=st.integers(1, 6),
    k=st.integers(1, 70),
    distinct=st.integers(1, 50),
    chunk=st.integers(1, 100),
    seed=st.integers(0, 10**6),
)
def test_equals_a_plain_sort_with_ties_and_exclusions(num_items, batch_size, k, distinct, chunk, seed):
    rng = np.random.default_rng(seed)
    s_BN = rng.integers(0, distinct, (batch_size, num_items)).astype(np.float32)
    excluded = [rng.choice(num_items, rng.integers(0, num_items), replace=False) for _ in range(batch_size)]
    excluded = [items.astype(np.int32) for items in excluded]
    scores = torch.from_numpy(s_BN)
    before = topk.CHUNK_SCORES, topk.LIST_SCORES
    topk.CHUNK_SCORES, topk.LIST_SCORES = chunk, chunk
    try:
        best_BK, rows_BK = top_k(lambda a, b: scores[:, a:b].clone(), num_items, k, excluded, batch_size)
        target_B = torch.from_numpy(rng.integers(0, num_items, batch_size))
        rank_B = target_ranks(lambda a, b: scores[:, a:b].clone(), num_items, target_B, excluded)
    finally:
        topk.CHUNK_SCORES, topk.LIST_SCORES = before
    for index, order in enumerate(plain_order(s_BN, excluded)):
        wanted = order[:k] + [0] * (k - len(order))
        assert rows_BK[index].tolist() == wanted
        assert best_BK[index, : len(order)].tolist() == [s_BN[index, row] for row in order[:k]]
        target = int(target_B[index])
        assert int(rank_B[index]) == (order.index(target) + 1 if target in order else MISS)


@settings(max_examples=40, deadline=None)
@given(
    num_items=st.integers(3, 60), batch_size=st.integers(1, 6), distinct=st.integers(1, 50), chunk=st.integers(1, 100),
    wrong=st.floats(0, 1), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_what_was_expected_of_a_target_changes_no_rank(num_items, batch_size, distinct, chunk, wrong, seed):
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, distinct, (batch_size, num_items)).astype(np.float32))
    target_B = torch.from_numpy(rng.integers(0, num_items, batch_size))
    expected_B = scores.gather(1, target_B[:, None])[:, 0]
    expected_B = torch.where(torch.from_numpy(rng.random(batch_size) < wrong), expected_B + 0.5, expected_B)
    excluded = [rng.integers(0, num_items, 4).astype(np.int32) for _ in range(batch_size)]
    before, topk.CHUNK_SCORES = topk.CHUNK_SCORES, chunk
    try:
        rank_B = target_ranks(lambda a, b: scores[:, a:b], num_items, target_B, excluded, expected_B)
    finally:
        topk.CHUNK_SCORES = before
    orders = plain_order(scores.numpy(), excluded)
    expected = [
        order.index(target) + 1 if target in order else MISS
        for order, target in zip(orders, target_B.tolist(), strict=True)
    ]
    assert rank_B.tolist() == expected


@pytest.mark.parametrize(("expected", "passes"), [(torch.tensor([5.0, 7.0]), 1), (torch.tensor([5.0, 6.0]), 2)])
def test_chunks_are_computed_once_where_the_expectation_holds(monkeypatch, expected, passes):
    monkeypatch.setattr(topk, "CHUNK_SCORES", 6)
    starts = []

    def scores(start, end):
        starts.append(start)
        return torch.arange(start, end).float().expand(2, -1)

    assert target_ranks(scores, 10, torch.tensor([5, 7]), None, expected).tolist() == [5, 3]
    assert starts == [2, 5, 8] * passes


def test_counting_by_lanes_neither_loses_nor_spills():
    rng = np.random.default_rng(0)
    for width in (1, 7, 8, 2039, 2040, 2041, 5000):
        s_BC = torch.from_numpy(rng.random((3, width), np.float32))
        for least in (-1.0, 0.5, 2.0):
            least_B = torch.full((3,), least)
            above = topk._Above(3, width)
            above.count(torch.ones(3, width), torch.zeros(3))  # leaves nothing behind
            assert torch.equal(above.count(s_BC, least_B), (s_BC > least).sum(1)), (width, least)
            assert torch.equal(above.count(s_BC[:, :5], least_B), (s_BC[:, :5] > least).sum(1)), (width, least)


def test_an_endless_score_ranks_first_and_ties_with_its_like():
    scores = torch.tensor([[0.0, 0.0, torch.inf, 1.0, torch.inf, 3e38]])
    assert top_k(lambda a, b: scores[:, a:b], 6, 4, None, 1)[1].tolist() == [[2, 4, 5, 3]]
    ranks = [target_ranks(lambda a, b: scores[:, a:b], 6, torch.tensor([row]), None).item() for row in (2, 4, 5, 3)]
    assert ranks == [1, 2, 3, 4]


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_scores_that_are_not_numbers_rank_last(bad):
    scores = torch.tensor([[0.0, 0.0, 1.0, bad, 2.0]])
    for k, wanted in ((3, [4, 2, 0]), (2, [4, 2]), (1, [4]), (0, [])):
        assert top_k(lambda a, b: scores[:, a:b].clone(), 5, k, None, 1)[1].tolist() == [wanted]
    rank = target_ranks(lambda a, b: scores[:, a:b].clone(), 5, torch.tensor([3]), None)
    assert rank.tolist() == [MISS]
