"""Convolutions over the last events, after Caser (Tang and Wang, 2018, arXiv:1809.07426).

Enters: a Batch. Leaves: one state per event. The last ``window`` events of a position are an image of events by
dimensions: horizontal filters look for patterns of a few neighbours anywhere in it, vertical ones sum over it.
Surprising choice: the paper computes one state, of the last window; here every position has its own, because all
targets of a history train, and what neighbouring windows share (a filter at a place) is computed once.

Shape legend: N packed positions, W events of the window, D width, F horizontal filters of one height, V vertical ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distft.models.blocks import INIT_STD
from distft.models.dropout import dropout
from distft.models.packing import Packing
from distft.models.products import Linear
from distft.models.sequence import SequenceModel
from distft.schema import Batch, Catalog

if TYPE_CHECKING:
    from distft.models.cnn.config import Config


class Cnn(SequenceModel):
    """Convolutions over the latest ``max_history`` events."""

    def __init__(self, config: Config, catalog: Catalog) -> None:
        self.window = config.window
        super().__init__(config, catalog)

    def new_block(self, config: Config, catalog: Catalog) -> nn.Module:
        """Horizontal and vertical convolutions."""
        return Convolutions(config)

    def look(self, packing: Packing, packed: Batch) -> Tensor:
        """back_NW: the packed place of the event 0, 1, … W - 1 before each; N where the history has none so early."""
        back_W = torch.arange(self.window, device=packing.position_N.device)
        place_N1 = torch.arange(len(packing.position_N), device=back_W.device)[:, None]
        return torch.where(back_W <= packing.position_N[:, None], place_N1 - back_W, len(place_N1))


class Convolutions(nn.Module):
    """x + what the filters found in the window of each position, put together by a linear layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dropout, dim, heights = config.dropout, config.dim, range(1, config.window + 1)
        self.norm = nn.LayerNorm(dim)
        self.horizontal = nn.ModuleList(Linear(height * dim, config.num_filters) for height in heights)
        self.vertical = nn.Parameter(INIT_STD * torch.randn(config.window, config.num_vertical))
        self.out = Linear(config.window * config.num_filters + config.num_vertical * dim, dim)

    def forward(self, x_ND: Tensor, _: Packing, back_NW: Tensor) -> Tensor:
        """x_ND of the packed positions."""
        h_ND = self.norm(x_ND)
        # Zeros stand for the events before the first, as in the paper.
        window_NWD = torch.cat([h_ND, h_ND.new_zeros(1, h_ND.shape[1])])[back_NW]
        found = [self._strongest(window_NWD, back_NW, height) for height in range(1, back_NW.shape[1] + 1)]
        found.append(torch.einsum("nwd,wv->nvd", window_NWD, self.vertical).flatten(1))
        return x_ND + F.relu(self.out(dropout(torch.cat(found, 1), self.dropout, self.training)))

    def _strongest(self, window_NWD: Tensor, back_NW: Tensor, height: int) -> Tensor:
        """The largest answer of each filter of this height at any place of each window, [N, F]."""
        layer = self.horizontal[height - 1]
        answer_NF = layer(window_NWD[:, :height].flatten(1))
        before_first = layer(window_NWD.new_zeros(1, height * window_NWD.shape[2]))
        answer_NF = F.relu(torch.cat([answer_NF, before_first]))
        return answer_NF[back_NW[:, : back_NW.shape[1] - height + 1]].amax(1)
