"""Exact top-k and target ranks over the whole catalogue: one code for evaluator, predictor and batch scoring.

Enters: a function that scores a range of item rows. Leaves: the best rows, or the places of targets. Scores come in
chunks of items, so that [B, N] never exists at once; PAD and UNKNOWN are never ranked. Of equal scores the lower item
row comes first, everywhere: an evaluated rank is the place that the server would show.

Surprising choice: a rank needs its target's score before the chunk that holds it was computed. The caller may say what
to expect; the chunk's own score has the last word, and where the two differ in any bit all chunks are counted again.

Shape legend: B histories, N items, C items of one chunk, K results, P exclusions (history and item), H histories whose
target is in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distft.schema import NUM_RESERVED

ScoreChunk = Callable[[int, int], Tensor]
"""(start, end) → s_BC: scores of the item rows start..end-1 for every history, a new tensor that may be changed."""

CHUNK_SCORES = 1 << 18
"""Scores computed at once on a CPU to rank targets: 1 MB in fp32, still in its caches when they are compared."""

LIST_SCORES = 1 << 21
"""The same to find the best: 8 MB, because torch.topk has its price for each row of a chunk, however wide that is."""

DEVICE_CHUNK_SCORES = 1 << 24
"""Scores computed at once on a GPU, where a chunk costs what it takes to start it."""

MISS = 2**31 - 1
"""The rank of a target that is nowhere in the list: beyond every k, also one that is larger than the catalogue."""

LANES = 8
"""Truth values in one 64-bit number, which may be added up 255 times before one spills into the next."""


def top_k(
    scores: ScoreChunk, num_items: int, k: int, excluded: Sequence[NDArray[np.int32]] | None, batch_size: int
) -> tuple[Tensor, Tensor]:
    """(scores_BK, rows_BK) of the best k items of each history, best first.

    ``excluded``: for each history the item rows that may not come out. Where fewer than k items are left, the
    list ends in row PAD with score -inf.
    """
    best_BK = torch.full((batch_size, 0), -torch.inf)
    rows_BK = torch.zeros((batch_size, 0), dtype=torch.int64)
    found: list[tuple[Tensor, Tensor]] = []
    for start, s_BC in _chunks(scores, num_items, batch_size, excluded):
        s_Bk, column_Bk = _best(s_BC, k)
        found.append((s_Bk, column_Bk + start))
        if sum(s_Bk.numel() for s_Bk, _ in found) > LIST_SCORES:
            found = [_merged(found, k)]
    if found:
        best_BK, rows_BK = _merged(found, k)
    missing = k - best_BK.shape[1]
    if missing > 0:
        best_BK = torch.nn.functional.pad(best_BK, (0, missing), value=-torch.inf)
        rows_BK = torch.nn.functional.pad(rows_BK, (0, missing), value=0)
    return best_BK, rows_BK.masked_fill(torch.isneginf(best_BK), 0)


def target_ranks(
    scores: ScoreChunk,
    num_items: int,
    target_B: Tensor,
    excluded: Sequence[NDArray[np.int32]] | None,
    expected_B: Tensor | None = None,
) -> Tensor:
    """rank_B int64, from 1: the place of each target in the list that ``top_k`` would give.

    A target that is not in the catalogue, or is excluded, is a ``MISS``. ``expected_B``:
    the targets' own scores, as far as known; where they are those of the chunks, every chunk is computed once.
    """
    num_scores = CHUNK_SCORES if target_B.device.type == "cpu" else DEVICE_CHUNK_SCORES
    spans = _spans(num_items, len(target_B), num_scores)
    if not spans or not len(target_B):
        return torch.full_like(target_B, MISS)
    if len(spans) == 1:
        s_BN = scores(*spans[0])
        scores = lambda start, end: s_BN  # noqa: E731
    ruled_out = _Exclusions.of(excluded)
    known_B = (target_B >= NUM_RESERVED) & (target_B < num_items)
    own_B = _own_scores(scores, spans, target_B) if expected_B is None else ordered(expected_B.float())
    own_B = own_B.masked_fill(~known_B, -torch.inf)
    rank_B, found_B = _places(scores, spans, target_B, own_B, ruled_out)
    if not torch.equal(found_B, own_B):
        rank_B, found_B = _places(scores, spans, target_B, found_B, ruled_out)
    return rank_B.masked_fill(torch.isneginf(found_B) | ruled_out.holds(target_B), MISS)


def _places(
    scores: ScoreChunk, spans: Sequence[tuple[int, int]], target_B: Tensor, own_B: Tensor, ruled_out: _Exclusions
) -> tuple[Tensor, Tensor]:
    """(rank_B of a target with the score own_B, the target's score in the chunks: -inf where they have none).

    What needs few of a chunk's scores is only gathered here, chunk by chunk, and computed at the end.
    """
    width, rank_B = spans[0][1] - spans[0][0], torch.ones_like(target_B)
    # Up to the target's own row an equal score comes before it; behind that row only a higher one.
    least_B, above = torch.nextafter(own_B, torch.full_like(own_B, -torch.inf)), _Above(len(own_B), width)
    around_BC = own_B.new_full((len(own_B), width), torch.nan)  # the chunk that holds a history's target
    s_parts = []
    places = ruled_out.places(spans, own_B.device)
    for (start, end), here_H, place_P in zip(spans, _whose(target_B, spans), places, strict=True):
        s_BC = scores(start, end).float()
        if len(here_H):
            least_B[here_H] = own_B[here_H]
            around_BC[here_H, : end - start] = s_BC[here_H]
        rank_B += above.count(s_BC, least_B)
        s_parts.append(s_BC.take(place_P))
    column_B1 = ((target_B - NUM_RESERVED) % width)[:, None]
    before_BC = torch.arange(width, device=own_B.device) < column_B1
    rank_B += (before_BC & (around_BC == own_B[:, None])).sum(1)
    s_P = torch.cat(s_parts)
    row_P, item_P = (torch.from_numpy(some[: len(s_P)]).to(s_P.device) for some in (ruled_out.row_P, ruled_out.item_P))
    own_P = own_B[row_P]
    better_P = (s_P > own_P) | ((s_P == own_P) & (item_P < target_B[row_P]))
    rank_B.index_add_(0, row_P, better_P.long(), alpha=-1)
    return rank_B, ordered(around_BC.gather(1, column_B1)[:, 0])


def _own_scores(scores: ScoreChunk, spans: Sequence[tuple[int, int]], target_B: Tensor) -> Tensor:
    own_B = torch.full(target_B.shape, -torch.inf, device=target_B.device)
    for (start, end), here_H in zip(spans, _whose(target_B, spans), strict=True):
        if len(here_H):
            own_B[here_H] = scores(start, end).float()[here_H, target_B[here_H] - start]
    return ordered(own_B)


def _whose(target_B: Tensor, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The histories whose target is in each of the spans."""
    target = target_B.cpu().numpy()
    order_B = np.argsort(target, kind="stable")
    bounds = np.searchsorted(target[order_B], spans)
    return [torch.from_numpy(order_B[low:high]).to(target_B.device) for low, high in bounds]


class _Above:
    """Counts the scores of each row that are above a bound.

    On a CPU numpy compares several times as fast as torch, and eight truth values are added up in one addition.
    """

    def __init__(self, num_rows: int, width: int) -> None:
        columns = min(width, 255 * LANES)
        self._found = np.zeros((num_rows, -(-columns // LANES) * LANES), np.bool_)

    def count(self, s_BC: Tensor, least_B: Tensor) -> Tensor:
        """num_B int64; a NaN is above nothing. ``s_BC`` is at most as wide as was said."""
        if s_BC.device.type != "cpu":
            return (s_BC > least_B[:, None]).sum(1)
        s, least = s_BC.detach().numpy(), least_B.numpy()[:, None]
        num_B = np.zeros(len(s), np.int64)
        for start in range(0, s.shape[1], 255 * LANES):
            part = s[:, start : start + 255 * LANES]
            np.greater(part, least, out=self._found[:, : part.shape[1]])
            self._found[:, part.shape[1] :] = False
            lanes = self._found.view(np.int64).sum(1)
            num_B += lanes.view(np.uint8).reshape(len(s), LANES).sum(1, dtype=np.int64)
        return torch.from_numpy(num_B)


def _spans(num_items: int, batch_size: int, num_scores: int) -> list[tuple[int, int]]:
    """The (start, end) of every chunk of item rows, of ``num_scores`` together; all but the last are equally wide."""
    width = max(1, num_scores // max(1, batch_size))
    return [(start, min(start + width, num_items)) for start in range(NUM_RESERVED, num_items, width)]


def ordered(s: Tensor) -> Tensor:
    """The scores with -inf for a NaN, which would compare false with everything and so come first."""
    return torch.nan_to_num(s, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _chunks(
    scores: ScoreChunk, num_items: int, batch_size: int, excluded: Sequence[NDArray[np.int32]] | None
) -> Iterator[tuple[int, Tensor]]:
    spans = _spans(num_items, batch_size, LIST_SCORES)
    for (start, end), place_P in zip(spans, _Exclusions.of(excluded).places(spans, torch.device("cpu")), strict=True):
        s_BC = scores(start, end).float()
        if len(place_P):
            s_BC = s_BC.contiguous()
            s_BC.view(-1).index_fill_(0, place_P.to(s_BC.device), -torch.inf)
        yield start, s_BC


@dataclass(frozen=True)
class _Exclusions:
    """Which history rules out which item: two flat arrays, by ascending item, so that a chunk's are a slice."""

    row_P: NDArray[np.int64]
    item_P: NDArray[np.int64]

    @classmethod
    def of(cls, excluded: Sequence[NDArray[np.int32]] | None) -> _Exclusions:
        lists, size = excluded or (), max(1, len(excluded or ()))
        row_P = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
        item_P = np.concatenate([np.zeros(0, np.int64), *lists]).astype(np.int64)
        ranked = item_P >= NUM_RESERVED
        key_P = np.unique(item_P[ranked] * size + row_P[ranked])  # an item that is named twice is ruled out once
        item_P, row_P = np.divmod(key_P, size)
        return cls(row_P, item_P)

    def places(self, spans: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """For each chunk the places, row after row, of the scores that are ruled out."""
        bounds = np.searchsorted(self.item_P, spans)
        rows, items = ([some[low:high] for low, high in bounds] for some in (self.row_P, self.item_P))
        return [
            torch.from_numpy(row * (end - start) + item - start).to(device)
            for (start, end), row, item in zip(spans, rows, items, strict=True)
        ]

    def holds(self, target_B: Tensor) -> Tensor:
        """True for each history that rules out its own target."""
        held_B = np.zeros(len(target_B), np.bool_)
        held_B[self.row_P[self.item_P == target_B.cpu().numpy()[self.row_P]]] = True
        return torch.from_numpy(held_B).to(target_B.device)


def _best(s_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(scores_BK, columns_BK) of the k best of each row in any order, of equal ones those in the lower columns.

    torch.topk leaves open which of equal scores it returns. That matters only where the k-th and the next score are
    equal; there the k-th is a threshold: all above it are in, of those equal to it the lowest columns fill up.
    A NaN, which it takes for the highest of all, is as good as -inf.
    """
    if k >= s_BC.shape[1]:
        return ordered(s_BC), torch.arange(s_BC.shape[1], device=s_BC.device).expand(len(s_BC), -1)
    best_BM, column_BM = torch.topk(s_BC, k + 1, dim=1)
    if bool(best_BM[:, 0].isnan().any()):
        return _best(ordered(s_BC), k)
    if not k or bool((best_BM[:, k - 1] > best_BM[:, k]).all()):
        return best_BM[:, :k], column_BM[:, :k]
    column_BK = _lowest_of_the_best(s_BC, best_BM[:, k - 1 : k], k)
    return s_BC.gather(1, column_BK), column_BK


def _merged(found: Sequence[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """(scores_BK, rows_BK) of the k best among some of several chunks, best first, ties to the lower row."""
    s_BM, row_BM = (torch.cat(some, dim=1) for some in zip(*found, strict=True))
    row_BM, order_BM = row_BM.sort(1)
    s_BM, order_BK = torch.sort(s_BM.gather(1, order_BM), dim=1, descending=True, stable=True)
    return s_BM[:, :k], row_BM.gather(1, order_BK[:, :k])


def _lowest_of_the_best(s_BC: Tensor, threshold_B1: Tensor, k: int) -> Tensor:
    above_BC, equal_BC = s_BC > threshold_B1, s_BC == threshold_B1
    room_B1 = k - above_BC.sum(1, keepdim=True)
    taken_BC = above_BC | (equal_BC & (equal_BC.cumsum(1) <= room_B1))
    return taken_BC.nonzero()[:, 1].view(len(s_BC), k)
