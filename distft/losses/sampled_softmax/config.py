"""Keys of ``loss: {kind: sampled_softmax}``: cross-entropy over the target and sampled items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from distft.component import refuse
from distft.losses.config import DrawnConfig, SmoothedConfig

if TYPE_CHECKING:
    from distft.losses.base import Loss
    from distft.schema import Catalog


class Config(SmoothedConfig, DrawnConfig):
    """Softmax whose normaliser is estimated from negatives, each weighed by how often it was to be expected."""

    kind: Literal["sampled_softmax"] = "sampled_softmax"
    sampling: Literal["uniform", "popularity", "in_batch"] = Field(
        "uniform", description="how negatives are drawn; in_batch: all targets of the micro-batch"
    )

    @model_validator(mode="after")
    def _a_batch_is_shared(self) -> Config:
        if self.sampling == "in_batch" and not self.negatives_shared:
            refuse([(("negatives_shared",), "the targets of a micro-batch (sampling: in_batch) are always shared")])
        return self

    def build(self, catalog: Catalog, state_dim: int) -> Loss:
        from distft.losses.sampled_softmax.loss import InBatchSoftmax, SampledSoftmax

        return (InBatchSoftmax if self.sampling == "in_batch" else SampledSoftmax)(self, catalog)
