"""Keys that several losses share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from distft.component import MAX_COUNT, LossConfig, refuse
from distft.schema import ExcludeSeen


class ComparingConfig(LossConfig):
    """A loss that compares each target with other items."""

    exclude_seen: ExcludeSeen = Field(
        "none",
        description="items of the history so far with which no target is compared: all that it holds, or those of"
        " target events; for rankings that leave them out by evaluate.exclude_seen",
    )

    @property
    def excluded(self) -> ExcludeSeen:
        return self.exclude_seen


class SmoothedConfig(ComparingConfig):
    """A cross-entropy, whose target can be smoothed."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all items")

    @model_validator(mode="after")
    def _smoothing_is_over_all(self) -> SmoothedConfig:
        if self.label_smoothing and self.exclude_seen != "none":
            text = "expected 0: it gives every item a share of the target, and loss.exclude_seen leaves some out"
            refuse([(("label_smoothing",), text)])
        return self


class DrawnConfig(ComparingConfig):
    """A loss over each target and a few items drawn by chance."""

    num_negatives: int = Field(256, ge=1, le=MAX_COUNT, description="items drawn for each target; a draw may repeat")
    popularity_exponent: float = Field(
        0.75, ge=0, le=4, description="of sampling: popularity: items are drawn by (their training targets) ** this"
    )
    negatives_shared: bool = Field(
        True,
        description="one draw for all targets of an optimiser step, which costs one matrix product; false: for each",
    )
    max_logits: int = Field(
        2_000_000, ge=1, le=MAX_COUNT, description="numbers held at once for the scores; bounds the loss's memory"
    )


class LogisticConfig(DrawnConfig):
    """A loss that tells each target from its negatives, pair by pair."""

    sampling: Literal["uniform", "popularity"] = Field("uniform", description="how negatives are drawn")
