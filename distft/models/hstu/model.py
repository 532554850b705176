"""Hierarchical sequential transduction units (Zhai et al., 2024, arXiv:2402.17152).

Enters: a Batch. Leaves: one state per event. Surprising choice: there is no embedding of positions; how far apart two
events are, in events and where the shop records times also in time, is added to the score of each pair.

Shape legend: N packed positions, D width, H heads, E width of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distft.models.dropout import dropout
from distft.models.elapsed import gap_codes, seconds_since_first
from distft.models.packing import Packing
from distft.models.products import Linear
from distft.models.sequence import SequenceModel
from distft.models.silu_attention import attend
from distft.schema import NUM_GAP_BUCKETS, Batch, Catalog

if TYPE_CHECKING:
    from distft.models.hstu.config import Config


class Hstu(SequenceModel):
    """Gated pointwise attention over the latest ``max_history`` events."""

    def new_block(self, config: Config, catalog: Catalog) -> nn.Module:
        """One transduction unit."""
        return Unit(config, catalog.has_clock)

    def look(self, packing: Packing, packed: Batch) -> tuple[Tensor, ...]:
        """For each group of the packing the code of the time between any two positions, uint8 [b, l, l]."""
        # One sum over all histories: each begins with an unknown gap, and only differences within one are used.
        seconds_N = seconds_since_first(packed.gap_BL)[0]
        codes = []
        for group in packing.groups:
            seconds_bl = group.pad(seconds_N)
            codes.append(gap_codes((seconds_bl[:, :, None] - seconds_bl[:, None]).float()).to(torch.uint8))
        return tuple(codes)


class Unit(nn.Module):
    """x + out(norm(attention(q, k, v)) · u), where u, v, q, k = SiLU(linear(norm(x)))."""

    def __init__(self, config: Config, has_clock: bool) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.max_history = config.num_heads, config.dropout, config.max_history
        self.norm = nn.LayerNorm(config.dim)
        self.uqkv = Linear(config.dim, 4 * config.dim)
        self.distance = nn.Parameter(torch.zeros(config.max_history))
        self.elapsed = nn.Parameter(torch.zeros(NUM_GAP_BUCKETS)) if has_clock else None
        self.attention_norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.out = Linear(config.dim, config.dim)

    def forward(self, x_ND: Tensor, packing: Packing, codes: tuple[Tensor, ...]) -> Tensor:
        """x_ND of the packed positions."""
        shape = len(x_ND), 4, self.num_heads, x_ND.shape[1] // self.num_heads
        uqkv_N4HE = F.silu(self.uqkv(self.norm(x_ND))).view(shape)
        u_ND = uqkv_N4HE[:, 0].flatten(1)
        y_NHE = attend(uqkv_N4HE[:, 1:], self.distance, self.elapsed, packing, codes)
        gated_ND = u_ND * self.attention_norm(y_NHE.flatten(1))
        update_ND: Tensor = self.out(dropout(gated_ND, self.dropout, self.training))
        return x_ND + update_ND
