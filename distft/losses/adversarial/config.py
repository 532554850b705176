"""Keys of ``loss: {kind: adversarial}``: negatives that a learnt generator proposes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from distft.component import MAX_COUNT, refuse
from distft.losses.config import ComparingConfig

if TYPE_CHECKING:
    from distft.losses.base import Loss
    from distft.schema import Catalog


class Config(ComparingConfig):
    """A generator learns which items the model takes for the target; the model learns to tell them apart."""

    kind: Literal["adversarial"] = "adversarial"
    num_negatives: int = Field(16, ge=1, le=MAX_COUNT, description="items that the generator proposes for each target")
    pool_size: int = Field(
        256, ge=2, le=MAX_COUNT, description="items drawn uniformly for a step, out of which the generator proposes"
    )
    generator_dim: int = Field(16, ge=1, le=16_384, description="width of the generator's own item embeddings")
    temperature: float = Field(
        0.2, gt=0, le=100, description="of the generator's choice; small: only what it thinks hardest"
    )
    max_logits: int = Field(
        2_000_000,
        ge=1,
        le=MAX_COUNT,
        description="numbers that a pair model holds at once beside the scores of the pool; bounds the memory",
    )

    @model_validator(mode="after")
    def _the_pool_has_enough(self) -> Config:
        if self.num_negatives >= self.pool_size:
            refuse([(("num_negatives",), f"expected less than pool_size ({self.pool_size}): else nothing is chosen")])
        return self

    def build(self, catalog: Catalog, state_dim: int) -> Loss:
        from distft.losses.adversarial.loss import Adversarial

        return Adversarial(self, catalog, state_dim)
