"""Keys that the losses with sampled negatives share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distft.component import MAX_COUNT, LossConfig


class DrawnConfig(LossConfig):
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
