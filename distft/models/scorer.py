"""How a state and an item's vector make a score: by their product, or by the cosine of the angle between them.

Enters: states and item vectors as a model computes them. Leaves: what their plain product then is the score of.
Surprising choice: all of it is done to the two vectors, so that whatever ranks by a product (losses, top-k, an index
of nearest neighbours) knows nothing of it.

Shape legend: ... any shape, D width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F


class Scorer:
    """dot: x · v; cosine: cos(x, v) / temperature, which the norm of an item, often its popularity, has no part in."""

    def __init__(self, score: Literal["dot", "cosine"], temperature: float) -> None:
        self._cosine, self._temperature = score == "cosine", temperature

    def states(self, x: Tensor) -> Tensor:
        """States [..., D] as they go into the product."""
        return self._unit(x) / self._temperature if self._cosine else x

    def item_vectors(self, v: Tensor) -> Tensor:
        """Item vectors [..., D] as they go into the product."""
        return self._unit(v) if self._cosine else v

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(x.float(), dim=-1).to(x.dtype)
