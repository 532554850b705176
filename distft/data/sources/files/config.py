"""Keys of ``source: files``: event logs as CSV, JSON Lines or Parquet, with a column mapping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from distft.component import EventName, KeyMistake, SourceConfig, refuse
from distft.schema import EVENT, EVENT_TYPES, ITEM_ID, QUANTITY, QUERY, TIMESTAMP, USER_ID, VALUE

if TYPE_CHECKING:
    from distft.data.sources.base import Source


def _texts(value: Any) -> Any:
    """One value or several, as texts: in YAML the raw value 1 is a number."""
    if not isinstance(value, dict):
        return value
    several = {name: raw if isinstance(raw, list | tuple) else [raw] for name, raw in value.items()}
    return {name: tuple(map(_text, values)) for name, values in several.items()}


def _text(raw: Any) -> Any:
    if isinstance(raw, bool):
        return str(raw).lower()
    return "" if raw is None else str(raw) if isinstance(raw, int | float) else raw


Values = Annotated[dict[str, Annotated[tuple[str, ...], Field(min_length=1)]], BeforeValidator(_texts)]
Column = Literal["user_id", "item_id", "event", "timestamp", "query", "value", "quantity"]
COLUMNS = (USER_ID, ITEM_ID, EVENT, TIMESTAMP, QUERY, VALUE, QUANTITY)


class Config(SourceConfig):
    """One log: where it is, which column is what, and which events it holds."""

    has_features: ClassVar[bool] = False
    source: Literal["files"] = "files"
    path: str = Field(min_length=1, description="file, glob or URI; .gz and .zst are read as they are")
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    separator: str = Field(",", min_length=1, max_length=1, description="of a CSV")
    header: tuple[str, ...] | None = Field(None, description="column names of a CSV that has no header line")
    columns: dict[Column, str] = Field(description="our name → the log's column; user_id is needed")
    event: EventName | None = Field(None, description="every row is this event")
    event_types: dict[str, EventName] | None = Field(
        None, description="raw value of columns.event → event type; any other value is rejected"
    )
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns", "iso"] = Field(
        "auto", description="auto: numbers by their size, dates as yyyymmdd, all else as ISO 8601 (UTC without a zone)"
    )
    where: Values = Field(
        default_factory=dict, description="the log's column → values: rows that have another one are left out"
    )
    where_not: Values = Field(
        default_factory=dict, description="the log's column → values: rows that have one of them are left out"
    )

    @field_validator("event_types", mode="before")
    @classmethod
    def _raw_values_are_text(cls, value: Any) -> Any:
        """In YAML the raw value 1 is a number, in a log it is a text."""
        return {str(raw): name for raw, name in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _complete(self) -> Config:
        refuse([*self._column_mistakes(), *self._event_mistakes(), *self._header_mistakes()])
        return self

    def _column_mistakes(self) -> Iterator[KeyMistake]:
        if USER_ID not in self.columns:
            yield ("columns",), "user_id is missing: name the column that holds it, user_id: ..."
        if ITEM_ID not in self.columns and self.event_names() != ("search",):
            yield ("columns",), "item_id is missing: name the column that holds it (only searches may do without)"

    def _event_mistakes(self) -> Iterator[KeyMistake]:
        if self.event is not None and EVENT in self.columns:
            yield ("event",), "expected this, one event for all rows, or a column for it in columns.event, not both"
        if self.event is None and EVENT not in self.columns:
            yield ("event",), "this key is needed, one event for all rows, or else a column for it in columns.event"
        if self.event_types is not None and EVENT not in self.columns:
            yield ("event_types",), "this needs columns.event, the column whose values it translates"

    def _header_mistakes(self) -> Iterator[KeyMistake]:
        header = self.header
        if header is None:
            return
        for index, name in enumerate(header):
            if name in header[:index]:
                yield ("header", index), "this name stands twice"
        named = {("columns", str(ours)): theirs for ours, theirs in self.columns.items()}
        named |= {(key, theirs): theirs for key in ("where", "where_not") for theirs in getattr(self, key)}
        for path, theirs in named.items():
            if theirs not in header:
                yield path, f"expected a name of 'header': {', '.join(header)}"

    def event_names(self) -> tuple[str, ...]:
        if self.event is not None:
            return (self.event,)
        return tuple(dict.fromkeys((self.event_types or {name: name for name in EVENT_TYPES}).values()))

    def open(self) -> Source:
        from distft.data.sources.files.source import Files

        return Files(self)
