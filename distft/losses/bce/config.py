"""Keys of ``loss: {kind: bce}``: binary cross-entropy, against sampled negatives or of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from distft.component import MAX_COUNT, refuse
from distft.losses.config import LogisticConfig

if TYPE_CHECKING:
    from distft.losses.base import Loss
    from distft.schema import Catalog


class Config(LogisticConfig):
    """Each target is a positive, with negatives drawn by chance; or, without negatives, its value is its label."""

    kind: Literal["bce"] = "bce"
    num_negatives: int = Field(
        1, ge=0, le=MAX_COUNT, description="items drawn for each target; 0: the target's value is its label, 0 or 1"
    )
    negatives_shared: bool = Field(
        False, description="one draw for all targets of an optimiser step, which suits many negatives; false: for each"
    )

    @model_validator(mode="after")
    def _labels_share_nothing(self) -> Config:
        if self.negatives_shared and not self.num_negatives:
            refuse([(("negatives_shared",), "there are no negatives to share with num_negatives: 0")])
        if self.exclude_seen != "none" and not self.num_negatives:
            refuse([(("exclude_seen",), "there are no negatives to leave out with num_negatives: 0")])
        return self

    @property
    def judges(self) -> Literal["labels"] | None:
        return None if self.num_negatives else "labels"

    def build(self, catalog: Catalog, state_dim: int) -> Loss:
        from distft.losses.bce.loss import BCE

        return BCE(self, catalog)
