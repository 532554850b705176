"""Keys of ``source: files``: event logs as CSV, JSON Lines or Parquet, with a column mapping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from distft.component import SourceConfig
from distft.schema import EVENT, EVENT_TYPES, ITEM_ID, QUANTITY, QUERY, TIMESTAMP, USER_ID, VALUE

if TYPE_CHECKING:
    from distft.data.sources.base import Source

Column = Literal["user_id", "item_id", "event", "timestamp", "query", "value", "quantity"]
COLUMNS = (USER_ID, ITEM_ID, EVENT, TIMESTAMP, QUERY, VALUE, QUANTITY)


class Config(SourceConfig):
    """One log: where it is, which column is what, and which events it holds."""

    source: Literal["files"] = "files"
    path: str = Field(min_length=1, description="file, glob or URI; .gz and .zst are read as they are")
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    separator: str = Field(",", min_length=1, max_length=1, description="of a CSV")
    header: tuple[str, ...] | None = Field(None, description="column names of a CSV that has no header line")
    columns: dict[Column, str] = Field(description="our name → the log's column; user_id is needed")
    event: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]*$", description="every row is this event")
    event_types: dict[str, str] | None = Field(
        None, description="raw value of columns.event → event type; any other value is rejected"
    )
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns", "iso"] = Field(
        "auto", description="auto: numbers by their size, anything else as ISO 8601 (without a zone: UTC)"
    )

    @field_validator("event_types", mode="before")
    @classmethod
    def _raw_values_are_text(cls, value: Any) -> Any:
        """In YAML the raw value 1 is a number, in a log it is a text."""
        return {str(raw): name for raw, name in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _complete(self) -> Config:
        if USER_ID not in self.columns:
            raise ValueError("columns must map user_id")
        if (self.event is None) == (EVENT not in self.columns):
            raise ValueError("give either a constant 'event' or a column for it in columns.event")
        if self.event_types is not None and EVENT not in self.columns:
            raise ValueError("event_types needs columns.event, the column whose values it translates")
        if ITEM_ID not in self.columns and self.event_names() != ("search",):
            raise ValueError("columns must map item_id (only a log of searches may do without)")
        return self

    def event_names(self) -> tuple[str, ...]:
        if self.event is not None:
            return (self.event,)
        return tuple(dict.fromkeys((self.event_types or {name: name for name in EVENT_TYPES}).values()))

    def open(self) -> Source:
        from distft.data.sources.files.source import Files

        return Files(self)
