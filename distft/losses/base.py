"""The protocol of a loss: a sum and a count, never a mean.

With means, the gradient would depend on how a batch was cut into micro-batches and ranks. With sums, the step
divides once, by the count of the whole batch.

Shape legend: B histories, L positions, M positions that have a target, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from distft.models.base import Model, states_at
from distft.schema import PAD, Batch


class Loss(nn.Module):
    """Base of all losses. May own parameters (an adversary's), never a second optimiser.

    ``depends_on_cut``: the loss of a position depends on which others share its micro-batch, so that the number of
    ranks and the size of a micro-batch are part of what is trained.
    """

    depends_on_cut: ClassVar[bool] = False

    def forward(self, model: Model, x_BLD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss_sum: fp32 scalar, count: int64 scalar) over the positions of ``batch`` that have a target."""
        raise NotImplementedError

    def item_rows(self, batch: Batch) -> Tensor:
        """The item rows whose vectors ``forward`` asks for, int64 [N], some perhaps several times.

        Known from the batch alone, so that they can be looked up before anything is computed. By default the targets.
        """
        return batch.target_BL[batch.target_BL != PAD]


@dataclass(frozen=True)
class Wanted:
    """The positions that have a target: their state, target and its value, and where they stand in the batch."""

    x_MD: Tensor
    target_M: Tensor
    value_M: Tensor
    row_M: Tensor
    position_M: Tensor

    @classmethod
    def of(cls, x_BLD: Tensor, batch: Batch) -> Wanted:
        """Those of a batch, row after row."""
        row_M, position_M = target_places(batch)
        index_M = row_M * batch.target_BL.shape[1] + position_M
        x_MD = states_at(x_BLD, row_M, position_M)
        return cls(
            x_MD, batch.target_BL.flatten()[index_M], batch.target_value_BL.flatten()[index_M], row_M, position_M
        )

    @property
    def count(self) -> Tensor:
        """How many there are: int64 scalar."""
        return self.target_M.new_tensor(len(self.target_M))


def target_places(batch: Batch) -> tuple[Tensor, Tensor]:
    """(row_M, position_M) of the positions with a target, row after row."""
    row_M, position_M = (batch.target_BL != PAD).nonzero(as_tuple=True)
    return row_M, position_M
