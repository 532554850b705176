"""Binary cross-entropy: of targets against sampled negatives (as SASRec, arXiv:1808.09781), or of labelled targets.

Enters: states, a batch with targets; their values, between 0 and 1, are the labels where no negatives are drawn.
Leaves: the loss's sum and count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from distft.losses.base import Loss, Wanted
from distft.losses.logistic import against_negatives
from distft.losses.negatives import Sampler
from distft.losses.scores import candidate_scores
from distft.losses.seen import Exclusion
from distft.models.base import Model
from distft.schema import Batch, Catalog

if TYPE_CHECKING:
    from distft.losses.bce.config import Config


class BCE(Loss):
    """log(1 + exp(s)) - label · s of a label; with K negatives the mean over the K + 1 pairs of a target."""

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.sampler = Sampler(catalog, config.sampling, config.popularity_exponent)
        self.exclusion = Exclusion(config.exclude_seen, catalog.target_events)

    def item_rows(self, batch: Batch) -> Tensor:
        """Targets, and negatives where there are any."""
        if not self.config.num_negatives:
            return super().item_rows(batch)
        drawn = self.sampler.drawn(batch, self.config.num_negatives, self.config.negatives_shared)
        return torch.cat([super().item_rows(batch), drawn])

    def forward(self, model: Model, x_BLD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss_sum, count)."""
        wanted = Wanted.of(x_BLD, batch)
        if self.config.num_negatives:
            return against_negatives(model, wanted, batch, self.sampler, self.exclusion, self.config, 1.0), wanted.count
        s_M = candidate_scores(model, wanted, wanted.target_M[:, None], batch, self.config.max_logits)[:, 0]
        return F.binary_cross_entropy_with_logits(s_M, wanted.value_M, reduction="sum"), wanted.count
