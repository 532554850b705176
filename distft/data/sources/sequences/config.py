"""Keys of ``source: sequences``: one user a line, with all of the user's items in time order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from distft.component import EventName, SourceConfig

if TYPE_CHECKING:
    from distft.data.sources.base import Source


class Config(SourceConfig):
    """Every item of a line is one event of the line's user; the attributes beside them are item features."""

    source: Literal["sequences"] = "sequences"
    path: str = Field(min_length=1, description="file, glob or URI of lines 'user item item ...', oldest item first")
    event: EventName = Field("purchase", description="every item is this event")
    attributes: str | None = Field(
        None, min_length=1, description="JSON file of {item: [attribute, ...]}: the feature 'attributes'"
    )

    def event_names(self) -> tuple[str, ...]:
        return (self.event,)

    def open(self) -> Source:
        from distft.data.sources.sequences.source import Sequences

        return Sequences(self)
