"""The ``evaluate`` and ``serve`` sections: what is scored, what is answered, by one rule of exclusion."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from distft.component import MAX_COUNT, Section, refuse
from distft.schema import ExcludeSeen
from distft.sections.values import Rank


class Evaluate(Section):
    """How the test split is scored; baselines and the server follow the same exclusion rule."""

    k: tuple[Rank, ...] = Field((1, 5, 10, 20), min_length=1)
    exclude_seen: ExcludeSeen = Field(
        "all", description="items of the history that are not recommended: all, those of target events, or none"
    )


class Serve(Section):
    """How the service scales and what it accepts."""

    min_replicas: int = Field(1, ge=0, le=MAX_COUNT)
    max_replicas: int = Field(4, ge=1, le=MAX_COUNT)
    max_k: int = Field(1000, ge=1, le=MAX_COUNT, description="longest list that a request may ask for")
    max_batch_size: int = Field(32, ge=1, le=MAX_COUNT, description="requests answered in one forward pass")
    batch_wait_s: float = Field(
        0.0, ge=0, le=1, description="how long the first request of a batch waits for others while the model is idle"
    )
    request_timeout_s: float = Field(10.0, gt=0)
    target_ongoing_requests: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="requests per replica that autoscaling aims at; by default max_batch_size"
    )
    upscale_delay_s: float = Field(3.0, ge=0, description="how long more must be wanted before replicas are added")
    downscale_delay_s: float = Field(60.0, ge=0, description="how long fewer must do before replicas are removed")
    item_vectors: Literal["fp32", "fp16", "int8"] = Field(
        "fp32",
        description="how the vectors of all items are stored in the bundle, and ranked by: fp16 takes half of the "
        "memory, int8 (with a scale for each row) about a quarter; evaluation and service rank by the same ones",
    )
    index_above_items: int = Field(
        200_000, ge=1, le=MAX_COUNT, description="larger catalogues get an index at export instead of being scanned"
    )
    index_recall: float = Field(
        0.98, gt=0, le=1, description="share of the 10 best items that the index must find, as measured at export"
    )
    num_ingress_replicas: int = Field(1, ge=1, le=MAX_COUNT, description="processes that speak HTTP")
    target_latency_s: float = Field(
        0.1, gt=0, description="what the model's answers should take; requests beyond that are turned away at once"
    )
    history: str = Field(
        "embedded",
        pattern=r"^(embedded|none|rediss?://.+)$",
        description="where the users' histories are kept: embedded (one node), redis://HOST:PORT/DB, or none",
    )
    history_events: int = Field(1000, ge=1, le=10_000, description="latest events of a user that are kept")
    export_histories: bool = Field(
        False, description="bundle/histories/ holds the users' events, with their ids: a service begins with them"
    )

    @property
    def ongoing_requests(self) -> int:
        """Requests per replica that autoscaling aims at."""
        return self.target_ongoing_requests or self.max_batch_size

    @field_validator("history")
    @classmethod
    def _no_password(cls, url: str) -> str:
        if urlsplit(url).password:
            raise ValueError("expected a URL without a password, which every bundle would hold: use serve --history")
        return url

    @model_validator(mode="after")
    def _replicas(self) -> Serve:
        if self.min_replicas > self.max_replicas:
            refuse([(("min_replicas",), f"this is above max_replicas ({self.max_replicas})")])
        return self
