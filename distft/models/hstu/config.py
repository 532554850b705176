"""Keys of ``model: {kind: hstu}``: hierarchical sequential transduction units over the event sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from distft.component import SequenceConfig, refuse

if TYPE_CHECKING:
    from distft.models.base import Model
    from distft.schema import Catalog


class Config(SequenceConfig):
    """Gated attention without a softmax, which knows how far back an event lies, in events and in time."""

    kind: Literal["hstu"] = "hstu"
    num_heads: int = Field(2, ge=1, le=256, description="attention heads; divides dim")

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Config:
        if self.dim % self.num_heads:
            refuse([(("num_heads",), f"expected a divisor of dim ({self.dim}), {self.num_heads} is none")])
        return self

    def build(self, catalog: Catalog) -> Model:
        from distft.models.hstu.model import Hstu

        return Hstu(self, catalog)
