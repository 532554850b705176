"""Keys of ``loss: {kind: mse}``: squared error of the score against the target's value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from distft.component import MAX_COUNT, LossConfig

if TYPE_CHECKING:
    from distft.losses.base import Loss
    from distft.schema import Catalog


class Config(LossConfig):
    """For ratings: the score, plus an offset, is to be the value of the target event."""

    kind: Literal["mse"] = "mse"
    offset: float = Field(0.0, description="value that a score of 0 stands for, such as the mean rating")
    max_logits: int = Field(
        2_000_000, ge=1, le=MAX_COUNT, description="numbers held at once for the scores; bounds the loss's memory"
    )

    @property
    def judges(self) -> Literal["values"]:
        return "values"

    def values(self, scores: Any) -> Any:
        return scores + self.offset

    def build(self, catalog: Catalog, state_dim: int) -> Loss:
        from distft.losses.mse.loss import MSE

        return MSE(self)
