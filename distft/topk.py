"""Exact top-k and target ranks over the whole catalogue: one code for evaluator, predictor and batch scoring.

Scores come in chunks of items, so that [B, N] never exists at once; PAD and UNKNOWN are never ranked. Of equal
scores the lower item row comes first, everywhere: an evaluated rank is the place that the server would show.

Shape legend: B histories, D width, N items, C items of one chunk, K results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distft.schema import NUM_RESERVED

ScoreChunk = Callable[[int, int], Tensor]
"""(start, end) → s_BC: scores of the item rows start..end-1 for every history."""

CHUNK_SCORES = 4_000_000
"""Scores held at once: 16 MB in fp32, which stays in a CPU's cache hierarchy and is nothing on a GPU."""


def dot_scores(x_BD: Tensor, vectors_ND: Tensor) -> ScoreChunk:
    """The score function of a model that ranks by the product of state and item vector."""
    return lambda start, end: x_BD @ vectors_ND[start:end].T


def top_k(
    scores: ScoreChunk, num_items: int, k: int, excluded: Sequence[NDArray[np.int32]] | None, batch_size: int
) -> tuple[Tensor, Tensor]:
    """(scores_BK, rows_BK) of the best k items of each history, best first.

    ``excluded``: for each history the item rows that may not come out. Where fewer than k items are left, the
    list ends in row PAD with score -inf.
    """
    best_BK = torch.full((batch_size, 0), -torch.inf)
    rows_BK = torch.zeros((batch_size, 0), dtype=torch.int64)
    for start, s_BC in _chunks(scores, num_items, batch_size, excluded):
        rows_C = torch.arange(start, start + s_BC.shape[1], device=s_BC.device)
        best_BK = torch.cat([best_BK.to(s_BC.device), s_BC], dim=1)
        rows_BK = torch.cat([rows_BK.to(s_BC.device), rows_C.expand(batch_size, -1)], dim=1)
        best_BK, rows_BK = _best(best_BK, rows_BK, k)
    missing = k - best_BK.shape[1]
    if missing > 0:
        best_BK = torch.nn.functional.pad(best_BK, (0, missing), value=-torch.inf)
        rows_BK = torch.nn.functional.pad(rows_BK, (0, missing), value=0)
    return best_BK, rows_BK.masked_fill(torch.isneginf(best_BK), 0)


def target_ranks(
    scores: ScoreChunk, num_items: int, target_B: Tensor, excluded: Sequence[NDArray[np.int32]] | None
) -> Tensor:
    """rank_B int64, from 1: the place of each target in the list that ``top_k`` would give.

    A target that is not in the catalogue, or is excluded, is a miss: its rank is ``num_items + 1``.
    """
    batch_size = len(target_B)
    target_s_B = torch.full((batch_size,), -torch.inf, device=target_B.device)
    for start, s_BC in _chunks(scores, num_items, batch_size, excluded):
        inside_B = (target_B >= start) & (target_B < start + s_BC.shape[1])
        index_B = (target_B - start).clamp(0, s_BC.shape[1] - 1)
        target_s_B = torch.where(inside_B, s_BC.gather(1, index_B[:, None])[:, 0], target_s_B)
    rank_B = torch.ones_like(target_B)
    for start, s_BC in _chunks(scores, num_items, batch_size, excluded):
        rows_C = torch.arange(start, start + s_BC.shape[1], device=s_BC.device)
        better_BC = s_BC > target_s_B[:, None]
        better_BC |= (s_BC == target_s_B[:, None]) & (rows_C < target_B[:, None])
        rank_B += better_BC.sum(1)
    return torch.where(torch.isneginf(target_s_B), num_items + 1, rank_B)


def _chunks(
    scores: ScoreChunk, num_items: int, batch_size: int, excluded: Sequence[NDArray[np.int32]] | None
) -> Iterator[tuple[int, Tensor]]:
    width = max(1, CHUNK_SCORES // max(1, batch_size))
    pairs = _flat(excluded)
    for start in range(NUM_RESERVED, num_items, width):
        end = min(start + width, num_items)
        s_BC = scores(start, end).float()
        # A NaN would compare false with everything and so rank first; it must rank last.
        s_BC = torch.nan_to_num(s_BC, nan=-torch.inf, posinf=torch.finfo(torch.float32).max, neginf=-torch.inf)
        if pairs is not None:
            row_P, item_P = pairs
            inside = (item_P >= start) & (item_P < end)
            s_BC[row_P[inside], item_P[inside] - start] = -torch.inf
        yield start, s_BC


def _flat(excluded: Sequence[NDArray[np.int32]] | None) -> tuple[Tensor, Tensor] | None:
    """(history, item) of every exclusion, as two flat index tensors."""
    if excluded is None:
        return None
    row_P = np.repeat(np.arange(len(excluded)), [len(items) for items in excluded])
    item_P = np.concatenate([np.zeros(0, np.int64), *excluded])
    return torch.from_numpy(row_P), torch.from_numpy(item_P.astype(np.int64))


def _best(s_BC: Tensor, rows_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row, ties to the lower item row.

    torch.topk leaves open which of equal scores it returns, so the k-th score is only used as a threshold: all
    above it are in, of those equal to it the lowest rows fill up. Columns stand in ascending item row within
    equal scores, because earlier winners are older, lower rows: a stable sort keeps that order.
    """
    k = min(k, s_BC.shape[1])
    threshold_B1 = torch.topk(s_BC, k, dim=1).values[:, -1:]
    above_BC, equal_BC = s_BC > threshold_B1, s_BC == threshold_B1
    room_B1 = k - above_BC.sum(1, keepdim=True)
    taken_BC = above_BC | (equal_BC & (equal_BC.cumsum(1) <= room_B1))
    index_BK = taken_BC.nonzero()[:, 1].view(len(s_BC), k)
    s_BK, rows_BK = s_BC.gather(1, index_BK), rows_BC.gather(1, index_BK)
    order_BK = torch.sort(s_BK, dim=1, descending=True, stable=True).indices
    return s_BK.gather(1, order_BK), rows_BK.gather(1, order_BK)
