"""A table that a model does not hold: it is given the rows that it will ask for, and nothing else.

Enters: distinct rows of a table that lies elsewhere, with their vectors. Leaves: the vectors of any of these rows, as
an ``nn.Embedding`` in its place would give them. Surprising choice: there is no parameter. The vectors are a leaf of
the graph, whose gradient is fetched by whoever handed them in, so that what wraps the module's parameters (DeepSpeed)
never hears of the table.

Shape legend: U distinct rows, D width; ... any shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LookedUp(nn.Module):
    """Stands where a table of ``num_embeddings`` rows of ``embedding_dim`` numbers would.

    ``dtype``: of what it gives, which is to be that of the module's weights; the vectors themselves are in fp32.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.dtype = torch.float32
        self.release()

    def hold(self, rows_U: Tensor, v_UD: Tensor) -> None:
        """From now on these rows can be asked for: int64, ascending, each once; ``v_UD`` in fp32."""
        self._rows_U, self._v_UD = rows_U, v_UD

    def release(self) -> None:
        """Lets the rows go: none can be asked for any more."""
        self._rows_U, self._v_UD = torch.zeros(0, dtype=torch.int64), torch.zeros(0, self.embedding_dim)

    def forward(self, items: Tensor) -> Tensor:
        """V [..., D] of item rows [...], of which each must be among those held."""
        place = torch.searchsorted(self._rows_U, items).clamp(max=max(0, len(self._rows_U) - 1))
        known = len(self._rows_U) > 0 and bool((self._rows_U[place] == items).all())
        assert known or not items.numel(), "rows are asked for that were not looked up"
        return F.embedding(place, self._v_UD.to(self.dtype))
