"""The protocol of a loss: a sum and a count, never a mean.

With means, the gradient would depend on how a batch was cut into micro-batches and ranks. With sums, the step
divides once, by the count of the whole batch.

Shape legend: M positions that have a target, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from distft.models.base import Model
from distft.schema import Batch


class Loss(nn.Module):
    """Base of all losses. May own parameters (an adversary's), never a second optimiser."""

    def forward(self, model: Model, x_BLD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss_sum: fp32 scalar, count: int64 scalar) over the positions of ``batch`` that have a target."""
        raise NotImplementedError
