"""Keys of ``model: {kind: cnn}``: convolutions over the last events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from distft.component import SequenceConfig, refuse

if TYPE_CHECKING:
    from distft.models.base import Model
    from distft.schema import Catalog


class Config(SequenceConfig):
    """Convolutions over the last events, taken as an image of events by dimensions."""

    kind: Literal["cnn"] = "cnn"
    num_blocks: int = Field(1, ge=1, le=256, description="each block looks window - 1 events further back")
    window: int = Field(5, ge=1, le=100, description="events that a convolution looks at: the latest")
    num_filters: int = Field(16, ge=1, le=4096, description="horizontal filters of each height, 1 to window events")
    num_vertical: int = Field(4, ge=1, le=4096, description="vertical filters, weighted sums of the events")

    @model_validator(mode="after")
    def _window_fits(self) -> Config:
        if self.window > self.max_history:
            refuse([(("window",), f"this is above max_history ({self.max_history})")])
        return self

    def build(self, catalog: Catalog) -> Model:
        from distft.models.cnn.model import Cnn

        return Cnn(self, catalog)
