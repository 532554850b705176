"""Generalised binary cross-entropy, gSASRec's (Petrov and Macdonald, 2023, arXiv:2308.07192, eq. 6 and 8).

Enters: states, a batch with targets and keys. Leaves: the loss's sum and count. With a share α = K / (V - 1) of the
other items drawn as negatives, plain binary cross-entropy learns scores that are too high; the probability of the
target is therefore taken to the power β = α · (t · (1 - 1/α) + 1/α), with t the key ``calibration``. Surprising
choice: the published code transforms the target's score instead; -β · log σ(s) is the same and needs no float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distft.losses.base import Loss, Wanted
from distft.losses.logistic import against_negatives
from distft.losses.negatives import Sampler
from distft.losses.seen import Exclusion
from distft.models.base import Model
from distft.schema import NUM_RESERVED, Batch, Catalog

if TYPE_CHECKING:
    from distft.losses.gbce.config import Config


class GBCE(Loss):
    """β · binary cross-entropy of the target, and that of its negatives."""

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.sampler = Sampler(catalog, config.sampling, config.popularity_exponent)
        self.exclusion = Exclusion(config.exclude_seen, catalog.target_events)
        self.beta = target_exponent(config.num_negatives, catalog.num_items - NUM_RESERVED, config.calibration)

    def item_rows(self, batch: Batch) -> Tensor:
        """Targets and negatives."""
        drawn = self.sampler.drawn(batch, self.config.num_negatives, self.config.negatives_shared)
        return torch.cat([super().item_rows(batch), drawn])

    def forward(self, model: Model, x_BLD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss_sum, count)."""
        wanted = Wanted.of(x_BLD, batch)
        return against_negatives(
            model, wanted, batch, self.sampler, self.exclusion, self.config, self.beta
        ), wanted.count


def target_exponent(num_negatives: int, num_items: int, calibration: float) -> float:
    """β, from 1 (t = 0, or all items are drawn) down to α (t = 1)."""
    alpha = min(1.0, num_negatives / max(1, num_items - 1))
    return alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
