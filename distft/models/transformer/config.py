"""Keys of ``model: {kind: transformer}``: a causal, pre-norm transformer over the event sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from distft.component import SequenceConfig, refuse

if TYPE_CHECKING:
    from distft.models.base import Model
    from distft.schema import Catalog


class Config(SequenceConfig):
    """Self-attention over the latest events, each the sum of its item, type, gap, query and feature embeddings."""

    kind: Literal["transformer"] = "transformer"
    num_heads: int = Field(2, ge=1, le=256, description="attention heads; divides dim")
    positions: Literal["learnt", "rotary"] = Field(
        "learnt", description="an embedding of each place, or queries and keys turned by it: distances alone count"
    )
    feed_forward: float = Field(4.0, gt=0, le=16, description="width of the hidden feed-forward layer, in dims")
    feed_forward_kind: Literal["gelu", "swiglu"] = Field("gelu", description="swiglu: gated, half as many weights more")

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Config:
        if self.dim % self.num_heads:
            refuse([(("num_heads",), f"expected a divisor of dim ({self.dim}), {self.num_heads} is none")])
        if self.positions == "rotary" and self.dim // self.num_heads % 2:
            width = self.dim // self.num_heads
            refuse([(("positions",), f"rotary turns pairs of numbers: expected heads of an even width, not {width}")])
        return self

    def build(self, catalog: Catalog) -> Model:
        from distft.models.transformer.model import Transformer

        return Transformer(self, catalog)
