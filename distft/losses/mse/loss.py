"""Squared error of the score against the value of the target event, such as a rating.

Enters: states, a batch with targets and their values. Leaves: the loss's sum and count. Surprising choice: the offset
is a key and no parameter, and there are no biases of items: whatever is learnt for a score must be the model's, since
the loss is neither evaluated nor served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from distft.losses.base import Loss, Wanted
from distft.losses.scores import candidate_scores
from distft.models.base import Model
from distft.schema import Batch

if TYPE_CHECKING:
    from distft.losses.mse.config import Config


class MSE(Loss):
    """(score + offset - value)²."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, model: Model, x_BLD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss_sum, count)."""
        wanted = Wanted.of(x_BLD, batch)
        s_M = candidate_scores(model, wanted, wanted.target_M[:, None], batch, self.config.max_logits)[:, 0]
        return (s_M + self.config.offset - wanted.value_M).square().sum(), wanted.count
