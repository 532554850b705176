"""Which items a target is not compared with: those of its history, which a ranking leaves out as well.

Enters: a batch, and its positions that have a target. Leaves: for a few of the positions at a time the items that their
histories hold up to them. Surprising choices: the pairs of position and item are never there for all positions at once,
as they are as many as attention has weights; and the target itself is always compared, also where it comes again.

Shape legend: B histories, L positions of one, M positions with a target, C positions of one chunk, K items of each
position, U candidates that all share, P pairs of a position and an item that it has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distft.losses.base import Wanted
from distft.losses.chunks import slices
from distft.losses.negatives import places
from distft.schema import NUM_RESERVED, Batch, ExcludeSeen

NONE = -1
"""Stands for an event whose item competes all the same."""


@dataclass(frozen=True)
class Seen:
    """What the histories hold: ``item_BL`` are item rows, or columns of candidates; below 0 for what does not count.

    ``target_M`` in the same numbers, ``row_M`` and ``position_M`` as in ``Wanted``.
    """

    item_BL: Tensor
    row_M: Tensor
    position_M: Tensor
    target_M: Tensor

    def among_all(self) -> Seen:
        """The same in columns of all real items."""
        return replace(self, item_BL=self.item_BL - NUM_RESERVED, target_M=self.target_M - NUM_RESERVED)

    def among(self, rows_U: Tensor, num_items: int) -> Seen:
        """The same in columns of the candidates ``rows_U``, distinct and ascending."""
        column_BL = places(rows_U, self.item_BL.clamp(min=0), num_items)  # row 0 is PAD's, which is no candidate
        return replace(self, item_BL=column_BL, target_M=places(rows_U, self.target_M, num_items))

    def pairs(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """(state_P, item_P) of the positions of a chunk, counted from its first; an item may come several times."""
        item_CL, position_C1 = self.item_BL[self.row_M[chunk]], self.position_M[chunk, None]
        past_CL = torch.arange(item_CL.shape[1], device=item_CL.device) <= position_C1
        counts_CL = past_CL & (item_CL >= 0) & (item_CL != self.target_M[chunk, None])
        state_P, place_P = counts_CL.nonzero(as_tuple=True)
        return state_P, item_CL[state_P, place_P]

    def holds(self, items_MK: Tensor, max_numbers: int) -> Tensor:
        """Whether each of K item rows of each position is one that it has seen, bool [M, K]."""
        size = 1 + max((int(part.max()) for part in (items_MK, self.item_BL) if part.numel()), default=0)
        found_MK = torch.zeros_like(items_MK, dtype=torch.bool)
        for chunk in slices(len(items_MK), self.item_BL.shape[1], max_numbers, items_MK.device):
            state_P, item_P = self.pairs(chunk)
            key_CK = torch.arange(len(items_MK[chunk]), device=items_MK.device)[:, None] * size + items_MK[chunk]
            found_MK[chunk] = torch.isin(key_CK, state_P * size + item_P)
        return found_MK


@dataclass(frozen=True)
class Exclusion:
    """The rule of ``loss.exclude_seen``, as ``distft.ranking.excluded_items`` has it for a ranking.

    ``target_events``: the codes of the events that a rule of targets alone counts.
    """

    rule: ExcludeSeen
    target_events: Sequence[int]

    def seen(self, batch: Batch, wanted: Wanted) -> Seen | None:
        """What the positions of these targets have seen; None where everything is compared."""
        if self.rule == "none":
            return None
        counts_BL = batch.item_BL >= NUM_RESERVED
        if self.rule == "targets":
            codes = batch.event_BL.new_tensor(list(self.target_events))
            counts_BL &= torch.isin(batch.event_BL, codes)
        item_BL = torch.where(counts_BL, batch.item_BL, NONE)
        return Seen(item_BL, wanted.row_M, wanted.position_M, wanted.target_M)


def left_out(items_MK: Tensor, wanted: Wanted, seen: Seen | None, max_numbers: int) -> Tensor:
    """Whether each of K item rows of each position is its target, or one that it has seen, bool [M, K]."""
    out_MK = items_MK == wanted.target_M[:, None]
    return out_MK if seen is None else out_MK | seen.holds(items_MK, max_numbers)
