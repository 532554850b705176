"""Places of targets in a catalogue whose table is sharded: each rank scores its own rows, for the states of all ranks.

Enters: on every rank some states with their targets. Leaves: the targets' ranks, as ``ranking.ranks_by`` gives them
for a whole table. What is exchanged are states and counts, never item vectors: of each rank's rows so many come before
a target, and a rank is one more than their sum. Surprising choice: the loop over chunks is as long on every rank, also
where one has a row less, because at ZeRO-3 a model's item vectors gather parameters from all ranks.

Shape legend: B histories of this rank, S those of all ranks, D width, C rows of a chunk, P exclusions (state and item).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from distft.models.base import Model
from distft.models.products import times_transposed
from distft.ranking import DotScores
from distft.schema import NUM_RESERVED
from distft.topk import MISS, ordered
from distft.train.sharded_table import ShardedTable

CHUNK_SCORES = 1 << 22
"""Scores computed at once."""


def sharded_ranks(
    model: Model, table: ShardedTable, x_BD: Tensor, target_B: Tensor, excluded: Sequence[NDArray[np.int32]] | None
) -> Tensor:
    """rank_B int64 of each target among all items that its history does not exclude, from 1; MISS for a miss.

    Collective, also with no history. Equal scores are ordered by item row.
    """
    asked = _Asked.of(x_BD, target_B, excluded)
    expected_S = _own_scores(model, table, asked)
    before_S, found_S = _places(model, table, asked, expected_S)
    if not torch.equal(found_S, expected_S):  # alike on every rank: a product of other shape gave other bits
        before_S, found_S = _places(model, table, asked, found_S)
    table.lookup.release()
    rank_S = (1 + before_S).masked_fill(torch.isneginf(found_S), MISS)
    start = dist.get_rank() * asked.width
    return rank_S[start : start + len(target_B)]


@dataclass(frozen=True)
class _Asked:
    """The states of all ranks, ``width`` from each, padded; and which of them excludes which item row."""

    width: int
    x_SD: Tensor
    target_S: Tensor
    state_P: Tensor
    item_P: Tensor

    @classmethod
    def of(cls, x_BD: Tensor, target_B: Tensor, excluded: Sequence[NDArray[np.int32]] | None) -> _Asked:
        lists = excluded if excluded is not None else ()
        row_P = torch.from_numpy(np.repeat(np.arange(len(lists)), [len(one) for one in lists]).astype(np.int64))
        item_P = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *lists]).astype(np.int64))
        sizes = torch.tensor([len(target_B), len(item_P)], device=x_BD.device)
        if dist.get_world_size() > 1:
            dist.all_reduce(sizes, dist.ReduceOp.MAX)
        width, most = sizes.tolist()
        # Padding asks for row 0, PAD, which is never ranked; and excludes it.
        state_P = row_P.to(x_BD.device) + dist.get_rank() * width
        return cls(
            width,
            _gathered(x_BD.float(), width).to(x_BD.dtype),  # not every backend exchanges bf16
            _gathered(target_B, width),
            _gathered(state_P, most),
            _gathered(item_P.to(x_BD.device), most),
        )


def _gathered(mine: Tensor, size: int) -> Tensor:
    """What all ranks have, each padded with zeros to ``size`` rows."""
    padded = mine.new_zeros(size, *mine.shape[1:])
    padded[: len(mine)] = mine
    if dist.get_world_size() == 1:
        return padded
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, padded)
    return torch.cat(parts)


def _own_scores(model: Model, table: ShardedTable, asked: _Asked) -> Tensor:
    """own_S: the targets' own scores, as products of the kind that scores the rows; -inf for what is not ranked."""
    mine_S = (asked.target_S % table.world_size == table.rank) & _is_ranked(asked, table.num_rows)
    place_T, index_H = torch.unique(asked.target_S[mine_S] // table.world_size, return_inverse=True)
    v_TD = model.item_vectors(table.hold(place_T))
    own_S = torch.full(asked.target_S.shape, -torch.inf, device=asked.x_SD.device)
    own_S[mine_S] = ordered(DotScores(asked.x_SD[mine_S], v_TD).of(index_H).float())
    return _most(own_S)


def _is_ranked(asked: _Asked, num_rows: int) -> Tensor:
    """True for the states whose target is an item that they do not exclude."""
    ranked_S = (asked.target_S >= NUM_RESERVED) & (asked.target_S < num_rows)
    ranked_S[asked.state_P[asked.item_P == asked.target_S[asked.state_P]]] = False
    return ranked_S


def _places(model: Model, table: ShardedTable, asked: _Asked, own_S: Tensor) -> tuple[Tensor, Tensor]:
    """(How many items come before a target with the score own_S, the targets' scores in the chunks), over all ranks."""
    before_S = torch.zeros_like(asked.target_S)
    found_S = torch.full_like(own_S, -torch.inf)
    ranked_S = _is_ranked(asked, table.num_rows)
    width = max(1, CHUNK_SCORES // max(1, len(own_S)))
    for start in range(0, -(-table.num_rows // table.world_size), width):
        rows_C = table.hold(slice(start, start + width))
        s_SC = ordered(times_transposed(asked.x_SD, model.item_vectors(rows_C)).float())
        _rule_out(s_SC, asked, rows_C, table.world_size)
        own_S1, target_S1 = own_S[:, None], asked.target_S[:, None]
        before_S += ((s_SC > own_S1) | ((s_SC == own_S1) & (rows_C < target_S1))).sum(1)
        state_H, column_H = (rows_C == target_S1).nonzero(as_tuple=True)
        found_S[state_H] = s_SC[state_H, column_H]
    if table.world_size > 1:
        dist.all_reduce(before_S)
    return before_S, _most(found_S.masked_fill(~ranked_S, -torch.inf))


def _rule_out(s_SC: Tensor, asked: _Asked, rows_C: Tensor, step: int) -> None:
    """Sets the scores of PAD, UNKNOWN, and of what a state excludes to -inf."""
    s_SC[:, rows_C < NUM_RESERVED] = -torch.inf
    if len(rows_C):
        first, last = int(rows_C[0]), int(rows_C[-1])
        here_P = (asked.item_P >= first) & (asked.item_P <= last) & ((asked.item_P - first) % step == 0)
        s_SC[asked.state_P[here_P], (asked.item_P[here_P] - first) // step] = -torch.inf


def _most(scores_S: Tensor) -> Tensor:
    """The largest over the ranks, of which at most one has each score."""
    if dist.get_world_size() > 1:
        dist.all_reduce(scores_S, dist.ReduceOp.MAX)
    return scores_S
