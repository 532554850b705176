"""The chunked ranking against a plain sort of the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distft import topk
from distft.topk import dot_scores, target_ranks, top_k


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
    before, topk.CHUNK_SCORES = topk.CHUNK_SCORES, chunk
    try:
        best_BK, rows_BK = top_k(lambda a, b: scores[:, a:b].clone(), num_items, k, excluded, batch_size)
        target_B = torch.from_numpy(rng.integers(0, num_items, batch_size))
        rank_B = target_ranks(lambda a, b: scores[:, a:b].clone(), num_items, target_B, excluded)
    finally:
        topk.CHUNK_SCORES = before
    for index, order in enumerate(plain_order(s_BN, excluded)):
        wanted = order[:k] + [0] * (k - len(order))
        assert rows_BK[index].tolist() == wanted
        assert best_BK[index, : len(order)].tolist() == [s_BN[index, row] for row in order[:k]]
        target = int(target_B[index])
        assert int(rank_B[index]) == (order.index(target) + 1 if target in order else num_items + 1)


def test_dot_scores_are_the_matrix_product():
    x_BD, v_ND = torch.randn(3, 8), torch.randn(20, 8)
    assert torch.equal(dot_scores(x_BD, v_ND)(4, 9), (x_BD @ v_ND[4:9].T))


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_scores_that_are_not_numbers_rank_last(bad):
    scores = torch.tensor([[0.0, 0.0, 1.0, bad, 2.0]])
    rows = top_k(lambda a, b: scores[:, a:b].clone(), 5, 3, None, 1)[1]
    assert rows.tolist() == [[4, 2, 0]]
    rank = target_ranks(lambda a, b: scores[:, a:b].clone(), 5, torch.tensor([3]), None)
    assert rank.tolist() == [6]
