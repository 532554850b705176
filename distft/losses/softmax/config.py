"""Keys of ``loss: {kind: softmax}``: cross-entropy over the whole catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from distft.component import MAX_COUNT
from distft.losses.config import SmoothedConfig

if TYPE_CHECKING:
    from distft.losses.base import Loss
    from distft.schema import Catalog


class Config(SmoothedConfig):
    """Full softmax, computed in chunks, so that the logits of all positions never exist at once."""

    takes_own_scores: ClassVar[bool] = True
    takes_pairs: ClassVar[bool] = False
    needs_all_items: ClassVar[bool] = True
    kind: Literal["softmax"] = "softmax"
    max_logits: int = Field(2_000_000, ge=1, le=MAX_COUNT, description="logits held at once; bounds the loss's memory")

    def build(self, catalog: Catalog, state_dim: int) -> Loss:
        from distft.losses.softmax.loss import Softmax

        return Softmax(self, catalog)
