"""The protocol of an event source, and the tables that pass from a source to prepare.

A source lists its read tasks (small, picklable, in a fixed order) and reads each of them as a stream of typed
batches. Rows that it cannot use come out beside the good ones with their reason, so that every row is accounted
for. A source knows neither Ray nor the number of CPUs: prepare runs its tasks wherever there is room.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


def event_schema() -> pa.Schema:
    """Arrow schema of ``EventBatch.events``.

    ``row`` counts the records of a file from 1 (a header line is not a record). ``time_ms`` is the time since
    1970 in UTC, or null throughout when the log has only an order. Texts that are absent are null, never "".
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("item_id", pa.string()),
            pa.field("event", pa.dictionary(pa.int8(), pa.string()), nullable=False),
            pa.field("time_ms", pa.int64()),
            pa.field("query", pa.string()),
            pa.field("value", pa.float32()),
            pa.field("quantity", pa.float32()),
        ]
    )


def rejected_schema() -> pa.Schema:
    """Arrow schema of ``dataset/rejected/*.parquet``: where a row stood, why it was set aside, its text, its user.

    The user is null where the row does not tell, or could not be taken apart.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("file", pa.string()),
            pa.field("row", pa.int64()),
            pa.field("reason", pa.string()),
            pa.field("raw", pa.string()),
            pa.field("user_id", pa.string()),
        ]
    )


@dataclass(frozen=True)
class ReadTask:
    """A part of a log that one process reads from start to end.

    ``file`` names it for people; ``num_bytes`` weighs it; ``position`` holds what the source needs to find it.
    """

    file: str
    num_bytes: int
    position: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EventBatch:
    """Some rows of one read task: ``events`` by ``event_schema()``, ``rejected`` by ``rejected_schema()``.

    A cancellation (negative quantity) stands in both: it is set aside, and it undoes an earlier event.
    ``num_left_out``: rows that the job does not want to read, and that are in neither.
    """

    events: pa.Table
    rejected: pa.Table
    num_left_out: int = 0


@dataclass(frozen=True)
class FeatureTable:
    """Features of items or users: ``table`` holds the key (item_id or user_id, strings) and one column a feature.

    Every key stands in it once. Columns in ``numeric`` are float64, those in ``text`` are strings that are only shown
    to people, all others are strings (one category a row) or lists of strings (several).

    ``rejected``: the records that could not be used, by ``rejected_schema()``; ``num_repeated``: those of an id that an
    earlier one had. ``bad_numbers``: for every numeric feature the values that are none and are missing in the table.
    """

    table: pa.Table
    key: str
    numeric: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    rejected: pa.Table | None = None
    num_repeated: int = 0
    bad_numbers: dict[str, int] = field(default_factory=dict)

    def kinds(self) -> dict[str, str]:
        """Feature name → number, category or text."""
        return {
            name: "number" if name in self.numeric else "text" if name in self.text else "category"
            for name in self.table.column_names
            if name != self.key
        }


@dataclass(frozen=True)
class RawHistory:
    """One user's events in the shop's own words, in time order; all lists are equally long."""

    item_ids: list[str | None]
    events: list[str]
    time_ms: list[int]
    queries: list[str | None]


class Oracle(Protocol):
    """Knows how a synthetic log was made, and what is observed of a user; not the user's hidden intent."""

    def scores(self, history: RawHistory, item_ids: list[str]) -> NDArray[np.float64]:
        """Probability of each of ``item_ids`` [N] to be the user's next target, up to a common factor."""


class Source(Protocol):
    """One entry of ``data.events``, opened."""

    has_clock: bool
    """False when the log tells only the order of its events: then ``time_ms`` is null, or orders and tells no more."""

    def read_tasks(self) -> list[ReadTask]:
        """The parts of the log, in the log's own order; the same list every time. Raises DataError."""

    def read(self, task: ReadTask) -> Iterator[EventBatch]:
        """The rows of one part, streamed in order. Raises DataError where the part is not of this format."""

    def identity(self) -> dict[str, Any]:
        """What the fingerprint of a dataset holds of this input: JSON; changes whenever the input does."""

    def items(self) -> FeatureTable | None:
        """The item features that come with the log."""

    def users(self) -> FeatureTable | None:
        """The user features that come with the log."""

    def oracle(self) -> Oracle | None:
        """The best reachable recommender, where the log is made up."""
