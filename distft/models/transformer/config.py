"""Keys of ``model: {kind: transformer}``: a causal, pre-norm transformer over the event sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from distft.component import ModelConfig, refuse

if TYPE_CHECKING:
    from distft.models.base import Model
    from distft.schema import Catalog


class Config(ModelConfig):
    """Self-attention over the latest events, each the sum of its item, type, gap, query and feature embeddings."""

    kind: Literal["transformer"] = "transformer"
    dim: int = Field(64, ge=4, le=16_384, description="width of the embeddings and the blocks")
    num_blocks: int = Field(2, ge=1, le=256)
    num_heads: int = Field(2, ge=1, le=256, description="attention heads; divides dim")
    dropout: float = Field(0.2, ge=0, lt=1)
    feed_forward: float = Field(4.0, gt=0, le=16, description="width of the hidden feed-forward layer, in dims")
    item_features: bool = Field(True, description="add embeddings of the items' categories and numbers")

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Config:
        if self.dim % self.num_heads:
            refuse([(("num_heads",), f"expected a divisor of dim ({self.dim}), {self.num_heads} is none")])
        return self

    def build(self, catalog: Catalog) -> Model:
        from distft.models.transformer.model import Transformer

        return Transformer(self, catalog)
