"""The encoder of a dataset: all that turns raw ids and words into rows and back.

Enters: the shop's ids, event names, queries. Leaves: item rows, event codes, token rows, and the features of every
item. It rests in ``<dataset>/encoder`` and is copied whole into a bundle, so that a server encodes a request with
the very code and tables that encoded the training data.

Item rows are ordered by training count (descending), then item id. Where an encoder continues another one
(``data.vocabulary.from``), the rows of that one come first, as they are, and only the rest is ordered so; ``counts``
are always of this dataset's own training part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from distft.data.features import FeatureColumn, FeatureSpec
from distft.data.parquet import read_table, write_table
from distft.data.ragged import offsets_of
from distft.data.sources.base import RawHistory
from distft.data.text import words
from distft.data.users import user_inputs
from distft.errors import ArtefactError, DataError
from distft.schema import ITEMLESS_EVENTS, NUM_RESERVED, PAD, UNKNOWN, Catalog, Histories
from distft.storage import Storage, canonical_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 2
NO_TIME = -1
"""``time_ms`` of an event whose time is not known."""

UNKNOWN_WORD = "unknown_to_distft"
"""Stands for an item or word that has no row where a history is told to somebody who encodes it again."""

_FEATURE = "feature."


@dataclass(frozen=True)
class RawEvent:
    """One event in the shop's own words; ``time_ms`` counts from 1970 in UTC."""

    item_id: str | None
    event: str
    time_ms: int | None = None
    query: str | None = None
    value: float | None = None


@dataclass(frozen=True)
class Ancestor:
    """An encoder that another one continues: its identity, and the rows of each of its vocabularies.

    ``rows`` has the names and sizes of ``Encoder.sizes``: rows below them are the ancestor's own.
    """

    identity: str
    rows: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Encoder:
    """Vocabularies, statistics and item features of one dataset; immutable.

    Event code c (from 1) is ``event_names[c - 1]``. ``item_ids``: raw id by item row, "" for PAD and UNKNOWN.
    ``counts``: training target events by item row. ``token_words``: word by token row, "" for PAD and UNKNOWN.
    ``user_features`` tells how ``dataset/users.parquet`` was encoded. ``ancestors``: the encoders that this one
    continues, the oldest first. ``value_bounds``: the ends that values of events were set to (``clean.clip_value``).
    ``label_at_least``: an event of the target types with such a value is positive (``data.label``); None where no
    label of an event is known by its own value.
    """

    event_names: tuple[str, ...]
    target_events: tuple[str, ...]
    has_clock: bool
    item_ids: NDArray[np.object_]
    counts: NDArray[np.int64]
    token_words: tuple[str, ...] = ("", "")
    features: tuple[FeatureColumn, ...] = ()
    user_features: tuple[FeatureSpec, ...] = ()
    ancestors: tuple[Ancestor, ...] = ()
    value_bounds: tuple[float, float] | None = None
    label_at_least: float | None = None

    # -- sizes and lookups ---------------------------------------------------------------------------------

    @property
    def num_items(self) -> int:
        """Item rows, PAD and UNKNOWN included."""
        return len(self.item_ids)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of every vocabulary, the reserved ones included: the sizes of a model's tables.

        ``items``, ``events``, ``query_tokens``, and ``items.<name>`` or ``users.<name>`` for a feature of categories.
        """
        groups = {"items": [column.spec for column in self.features], "users": self.user_features}
        categories = {
            f"{table}.{spec.name}": len(spec.vocabulary)
            for table, specs in groups.items()
            for spec in specs
            if spec.kind == "category"
        }
        rows = {"items": self.num_items, "events": len(self.event_names) + 1, "query_tokens": len(self.token_words)}
        return rows | categories

    def num_base_rows(self, vocabulary: str) -> int:
        """Rows of one of ``sizes`` that are those of the encoder that this one continues; 0 if it continues none."""
        return self.ancestors[-1].rows[vocabulary] if self.ancestors else 0

    @cached_property
    def identity(self) -> str:
        """SHA-256 of all vocabularies, statistics and item features; not of counts, which tell of the events alone.

        A dataset and the bundles made of it have one identity. A model fits an encoder that has the identity of its
        own, or has it among its ancestors.
        """
        specs = [[spec.describe(), list(spec.vocabulary)] for spec in self.user_features]
        sha = hashlib.sha256(canonical_json([self.event_names, self.has_clock, specs, self._described_ancestors()]))
        texts: list[Iterable[str]] = [self.item_ids.tolist(), self.token_words]
        for column in self.features:
            sha.update(canonical_json([column.spec.describe(), list(column.spec.vocabulary)]))
            for array in (column.offsets, column.codes, column.values):
                sha.update(array.tobytes())
            texts.append(column.texts.tolist())
        for text in (text.encode() for group in texts for text in group):
            sha.update(b"%d:%b" % (len(text), text))
        return sha.hexdigest()

    def _described_ancestors(self) -> list[dict[str, object]]:
        return [{"identity": one.identity, "rows": dict(one.rows)} for one in self.ancestors]

    def as_ancestor(self) -> Ancestor:
        """What is told of an encoder in one that continues it."""
        return Ancestor(self.identity, self.sizes)

    @cached_property
    def popularity(self) -> NDArray[np.int32]:
        """Item rows by training target count, descending; ties to the lower row."""
        return (np.argsort(-self.counts[NUM_RESERVED:], kind="stable") + NUM_RESERVED).astype(np.int32)

    @cached_property
    def target_codes(self) -> NDArray[np.int8]:
        """Codes of the events that are predicted."""
        return np.array([self.event_code(name) for name in self.target_events], np.int8)

    @cached_property
    def label_codes(self) -> NDArray[np.int8]:
        """Codes of the events whose label a history shows: an event's own value tells it, not what came after."""
        return self.target_codes if self.label_at_least is not None else np.zeros(0, np.int8)

    @cached_property
    def _row_of_item(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids.tolist()) if row >= NUM_RESERVED}

    @cached_property
    def _code_of_event(self) -> dict[str, int]:
        return {name: code for code, name in enumerate(self.event_names, 1)}

    @cached_property
    def _row_of_word(self) -> dict[str, int]:
        return {word: row for row, word in enumerate(self.token_words) if row >= NUM_RESERVED}

    @cached_property
    def title(self) -> FeatureColumn | None:
        """What an item is called: the feature named so, where it is a text."""
        texts = [column for column in self.features if column.spec.kind == "text"]
        return next((column for column in texts if column.spec.name == "title"), None)

    def catalog(self) -> Catalog:
        """What a model must know to be built."""
        features = tuple(feature for column in self.features for feature in column.inputs())
        num_tokens = len(self.token_words)
        return Catalog(
            num_items=self.num_items,
            num_events=len(self.event_names) + 1,
            num_query_tokens=num_tokens,
            has_clock=self.has_clock,
            features=features,
            counts=self.counts,
            user_features=user_inputs(self.user_features),
            has_labels=self.label_at_least is not None,
            target_events=tuple(self.target_codes.tolist()),
        )

    # -- words → rows --------------------------------------------------------------------------------------

    def item_rows(self, ids: Iterable[str]) -> NDArray[np.int32]:
        """Row of each item id; UNKNOWN for an id that has none."""
        row_of_item = self._row_of_item
        return np.array([row_of_item.get(item_id, UNKNOWN) for item_id in ids], np.int32)

    def event_code(self, name: str) -> int:
        """Code of an event type; raises DataError naming the valid ones."""
        code = self._code_of_event.get(name)
        if code is None:
            valid = ", ".join(self.event_names)
            raise DataError(f"'{name}' is not an event of this dataset", f"one of {valid}")
        return code

    def tokens(self, text: str) -> list[int]:
        """Token rows of a query's words; UNKNOWN for a word that has none."""
        row_of_word = self._row_of_word
        return [row_of_word.get(word, UNKNOWN) for word in words(text)]

    def encode_events(self, events: Sequence[RawEvent]) -> Histories:
        """One user's events as Histories of one row, see ``encode_users``."""
        return self.encode_users([events])

    def encode_users(self, users: Sequence[Sequence[RawEvent]]) -> Histories:
        """The events of users, a row each, in time order (in the given one unless all of a user's have a time).

        Raises DataError for an unknown event type, and for an event without an item that needs one.
        """
        orders = [time_order(events) for events in users]
        users = [
            events if order is None else [events[place] for place in order]
            for events, order in zip(users, orders, strict=True)
        ]
        events = [event for some in users for event in some]
        for event in events:
            if event.item_id is None and event.event not in ITEMLESS_EVENTS:
                itemless = ", ".join(sorted(ITEMLESS_EVENTS))
                raise DataError(f"a {event.event} has no item_id", f"one; only these may lack it: {itemless}")
        row_of_item = self._row_of_item
        item_row = [PAD if (id_ := event.item_id) is None else row_of_item.get(id_, UNKNOWN) for event in events]
        tokens = [self.tokens(event.query) if event.query else () for event in events]
        code_of_event, names = self._code_of_event, [event.event for event in events]
        codes = np.array([code_of_event.get(name) or self.event_code(name) for name in names], np.int8)
        times = [event.time_ms for event in events]
        return Histories(
            offsets=offsets_of(np.array([len(some) for some in users], np.int64)),
            item_row=np.array(item_row, np.int32),
            event=codes,
            time_ms=np.array([NO_TIME if time_ms is None else time_ms for time_ms in times], np.int64),
            query_offsets=offsets_of(np.array([len(row) for row in tokens], np.int64)),
            query_tokens=np.array([token for row in tokens for token in row], np.int32),
            user_row=np.full(len(users), -1, np.int32),
            value=self.labels(codes, np.array([event.value for event in events], np.float32)),
        )

    def labels(self, codes: NDArray[np.int8], value: NDArray[np.float32]) -> NDArray[np.float32]:
        """The label of every event as a dataset holds it; NaN where its value is not known, 0 where there is none."""
        if not len(self.label_codes):
            return np.zeros(len(codes), np.float32)
        labels = np.where(np.isnan(value), np.nan, value >= np.float32(self.label_at_least or 0.0))
        return np.where(np.isin(codes, self.label_codes), labels, 0.0).astype(np.float32)

    def label_values(self, histories: Histories, i: int) -> list[float | None]:
        """For every event of row ``i`` a value that gives its label again, None where a history shows no label."""
        events = slice(int(histories.offsets[i]), int(histories.offsets[i + 1]))
        least = self.label_at_least or 0.0
        shown = np.isin(histories.event[events], self.label_codes)
        positive = histories.value[events] >= 0.5 if shown.any() else shown
        return [(least if good else least - 1) if told else None for told, good in zip(shown, positive, strict=True)]

    # -- rows → words --------------------------------------------------------------------------------------

    def token_texts(self, rows: Iterable[int]) -> list[str]:
        """Word of each token row; "" for PAD and UNKNOWN."""
        return [self.token_words[row] for row in rows]

    def titles(self, rows: Iterable[int]) -> list[str]:
        """What to show of each item row: its title where there is one, else its id."""
        texts = self.title.texts if self.title is not None else self.item_ids
        return [str(texts[row] or self.item_ids[row]) for row in rows]

    def decode(self, histories: Histories, i: int, unknown: str | None = None) -> RawHistory:
        """Row ``i`` in the shop's words.

        An item or word without a row of its own becomes ``unknown`` (a text that is no item and no word), so that
        encoding the result gives the same rows again; without it such items are None and such words left out.
        """
        start, end = int(histories.offsets[i]), int(histories.offsets[i + 1])
        rows = histories.item_row[start:end].tolist()
        queries: list[str | None] = []
        for event in range(start, end):
            tokens = histories.query_tokens[histories.query_offsets[event] : histories.query_offsets[event + 1]]
            texts = [text or unknown for text in self.token_texts(tokens.tolist())]
            queries.append(" ".join(text for text in texts if text) if texts else None)
        return RawHistory(
            item_ids=[unknown if row == UNKNOWN else self.item_ids[row] or None for row in rows],
            events=[self.event_names[code - 1] for code in histories.event[start:end].tolist()],
            time_ms=histories.time_ms[start:end].tolist(),
            queries=queries,
        )

    def feature(self, name: str) -> FeatureColumn:
        """An item feature; raises DataError naming the ones there are."""
        for column in self.features:
            if column.spec.name == name:
                return column
        known = ", ".join(column.spec.name for column in self.features) or "none: the dataset has no item features"
        raise DataError(f"'{name}' is not an item feature of this dataset", f"one of: {known}")

    # -- storage -------------------------------------------------------------------------------------------

    def save(self, storage: Storage) -> None:
        """Writes the encoder's files to ``<dataset>/encoder`` or ``<bundle>/encoder``."""
        storage.make()
        items = {"item_id": pa.array(self.item_ids, pa.string()), "count": pa.array(self.counts, pa.int64())}
        items |= {_FEATURE + column.spec.name: column.to_arrow() for column in self.features}
        write_table(storage, "items.parquet", pa.table(items))
        write_table(storage, "query_tokens.parquet", pa.table({"word": pa.array(self.token_words, pa.string())}))
        item_specs = tuple(column.spec for column in self.features)
        write_table(storage, "categories.parquet", _categories({"items": item_specs, "users": self.user_features}))
        description = {
            "format": FORMAT,
            "event_names": list(self.event_names),
            "target_events": list(self.target_events),
            "has_clock": self.has_clock,
            "features": [spec.describe() for spec in item_specs],
            "user_features": [spec.describe() for spec in self.user_features],
            "value_bounds": self.value_bounds,
            "label_at_least": self.label_at_least,
            "ancestors": self._described_ancestors(),
        }
        storage.write_json("encoder.json", description)

    @classmethod
    def of_dataset(cls, dataset: Storage) -> Encoder:
        """The encoder of a committed dataset, whose files were found whole. Raises ArtefactError."""
        dataset.verified("dataset", below="encoder/")
        return cls.load(dataset / "encoder")

    @classmethod
    def load(cls, storage: Storage) -> Encoder:
        """The encoder in a folder. Raises ArtefactError where it is damaged or of another format."""
        description = storage.read_json("encoder.json")
        if description.get("format") != FORMAT:
            raise ArtefactError(
                f"{storage.uri} has encoder format {description.get('format')!r}",
                f"format {FORMAT}",
                "Prepare the dataset again with this version of distft.",
            )
        items = read_table(storage, "items.parquet")
        categories = read_table(storage, "categories.parquet")
        item_specs = _specs(description["features"], categories, "items")
        return cls(
            event_names=tuple(description["event_names"]),
            target_events=tuple(description["target_events"]),
            has_clock=bool(description["has_clock"]),
            item_ids=items["item_id"].to_numpy(),
            counts=items["count"].to_numpy(),
            token_words=tuple(read_table(storage, "query_tokens.parquet")["word"].to_pylist()),
            features=tuple(FeatureColumn.from_arrow(spec, items[_FEATURE + spec.name]) for spec in item_specs),
            user_features=_specs(description["user_features"], categories, "users"),
            value_bounds=tuple(description["value_bounds"]) if description.get("value_bounds") else None,
            label_at_least=description.get("label_at_least"),
            ancestors=tuple(Ancestor(**one) for one in description.get("ancestors", ())),
        )


def time_order(events: Sequence[RawEvent]) -> list[int] | None:
    """The places of events in time order; None where they stay as they are: in order, or not all with a time."""
    times = [event.time_ms for event in events]
    if None in times or sorted(times) == times:  # type: ignore[type-var]
        return None
    return sorted(range(len(events)), key=times.__getitem__)  # type: ignore[arg-type]


def _categories(specs: dict[str, tuple[FeatureSpec, ...]]) -> pa.Table:
    rows = [(table, spec.name, value) for table, group in specs.items() for spec in group for value in spec.vocabulary]
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    names = ("table", "feature", "value")
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)})


def _specs(described: list[dict[str, Any]], categories: pa.Table, table: str) -> tuple[FeatureSpec, ...]:
    vocabularies: dict[str, list[str]] = {}
    for row_table, feature, value in zip(*(column.to_pylist() for column in categories.columns), strict=True):
        if row_table == table:
            vocabularies.setdefault(feature, []).append(value)
    return tuple(FeatureSpec.described(value, tuple(vocabularies.get(value["name"], ()))) for value in described)
