"""Negatives with known probabilities, drawn for each target or once for a whole optimiser step.

Enters: a batch with its keys, and how often each item was a training target. Leaves: item rows, and how many draws of
each are to be expected. Surprising choice: the distribution is one table of whole numbers (cumulated probabilities
times 2**53), so that what is drawn and what is told of its probability cannot differ, neither by rounding nor because
bf16 training casts the buffers of a module.

Shape legend: M positions with a target, K negatives of each, U distinct items, V items of the catalogue.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from distft.losses.base import target_places
from distft.losses.draws import UNIT_BITS, below, numbers, place_keys, units
from distft.schema import NUM_RESERVED, Batch, Catalog


class Sampler(nn.Module):
    """Draws item rows by a fixed distribution: uniformly, or by (training targets of an item) ** ``exponent``.

    An item that was never a target is drawn like one that was a target once: what is never a negative is never told
    to score low (Mikolov et al., 2013, arXiv:1310.4546, for the exponent of 3/4).
    """

    upper_V: Tensor

    def __init__(self, catalog: Catalog, sampling: Literal["uniform", "popularity"], exponent: float) -> None:
        super().__init__()
        self.size = catalog.num_items - NUM_RESERVED
        self.uniform = sampling == "uniform" or catalog.counts is None
        upper_V = np.zeros(0, np.int64)  # nothing is looked up where all are alike: 8 bytes an item
        if not self.uniform:
            assert catalog.counts is not None
            counts_V = np.maximum(catalog.counts[NUM_RESERVED:], 1)
            total_V = np.cumsum(counts_V.astype(np.float64) ** exponent)
            upper_V = np.round(total_V / total_V[-1:] * 2**UNIT_BITS).astype(np.int64)
        # Not persistent: it follows from the encoder's counts.
        self.register_buffer("upper_V", torch.from_numpy(upper_V), persistent=False)

    def draw(self, key_N: Tensor, count: int) -> Tensor:
        """Item rows [N, K]: ``count`` of each key, independent, so that one may repeat."""
        random_NK = numbers(key_N, count)
        if self.uniform:
            return NUM_RESERVED + below(random_NK, self.size)
        return NUM_RESERVED + torch.searchsorted(self.upper_V, units(random_NK), right=True)

    def log_probability(self, items: Tensor) -> Tensor:
        """Log of the probability that a draw is this item row, fp32 [...]."""
        place = items - NUM_RESERVED
        if self.uniform:
            return torch.full(items.shape, -math.log(self.size), dtype=torch.float32, device=items.device)
        lower = torch.where(place > 0, self.upper_V[(place - 1).clamp(min=0)], 0)
        return (self.upper_V[place] - lower).double().log().float() - UNIT_BITS * math.log(2)

    def for_step(self, batch: Batch, count: int) -> Tensor:
        """``count`` item rows that all rows of the batch's optimiser step share, [K]."""
        key_1 = batch.step_key_B[:1] if len(batch.step_key_B) else batch.step_key_B.new_zeros(1)
        return self.draw(key_1, count)[0]

    def for_each(self, batch: Batch, count: int) -> Tensor:
        """``count`` item rows for each position with a target, [M, K], in the order of ``Wanted``."""
        row_M, position_M = target_places(batch)
        return self.draw(place_keys(batch.key_B[row_M], position_M), count)

    def drawn(self, batch: Batch, count: int, shared: bool) -> Tensor:
        """The item rows of ``for_step`` or of ``for_each``, in a row."""
        return self.for_step(batch, count) if shared else self.for_each(batch, count).flatten()


MANY_ITEMS = 1 << 20
"""Above it item rows are sorted, where below a number for each item of the catalogue is faster."""


def distinct(items_N: Tensor, num_items: int) -> tuple[Tensor, Tensor]:
    """(rows_U, count_U): the item rows in order, each once, and how often it stands there."""
    if num_items > MANY_ITEMS:
        rows_U, count_U = torch.unique(items_N, return_counts=True)
        return rows_U, count_U
    count_V = torch.bincount(items_N, minlength=num_items)
    rows_U = count_V.nonzero()[:, 0]
    return rows_U, count_V[rows_U]


def places(rows_U: Tensor, items: Tensor, num_items: int) -> Tensor:
    """Where each of ``items`` [...] stands among the distinct ``rows_U``, which ascend; -1 where it does not."""
    if num_items > MANY_ITEMS:
        if not len(rows_U):
            return torch.full_like(items, -1)
        place = torch.searchsorted(rows_U, items).clamp(max=len(rows_U) - 1)
        return torch.where(rows_U[place] == items, place, -1)
    place_V = torch.full((num_items,), -1, dtype=torch.int64, device=rows_U.device)
    place_V[rows_U] = torch.arange(len(rows_U), device=rows_U.device)
    return place_V[items]
