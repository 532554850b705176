"""Keys of ``loss: {kind: gbce}``: binary cross-entropy that allows for the sampling of its negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from distft.losses.config import LogisticConfig

if TYPE_CHECKING:
    from distft.losses.base import Loss
    from distft.schema import Catalog


class Config(LogisticConfig):
    """Generalised binary cross-entropy of gSASRec: few negatives without the overconfidence that they bring."""

    kind: Literal["gbce"] = "gbce"
    calibration: float = Field(
        0.75, ge=0, le=1, description="t of gSASRec: 0 is plain binary cross-entropy, 1 allows fully for the sampling"
    )

    def build(self, catalog: Catalog, state_dim: int) -> Loss:
        from distft.losses.gbce.loss import GBCE

        return GBCE(self, catalog)
