"""The latest events of every user of a dataset, in the shop's own words: ``bundle/histories/``.

Enters: a dataset and its encoder. Leaves: Parquet files with a row a user, and from these a user's events again.
Surprising choice: a user's history is the last target of the latest split with the events before it, because a dataset
holds nothing else of what came after the training part. For many users at once a text is looked up once for all the
places where it stands.

Shape legend: E events of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distft.data import ragged
from distft.data.encode import NO_TIME, UNKNOWN_WORD, Encoder, RawEvent
from distft.data.parquet import read_table, write_table
from distft.data.shards import split_files
from distft.errors import ArtefactError, DataError
from distft.schema import ITEMLESS_EVENTS, PAD, UNKNOWN, Histories
from distft.storage import Storage

FOLDER = "histories"
SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string()),
        pa.field("item_id", pa.list_(pa.string())),
        pa.field("event", pa.list_(pa.string())),
        pa.field("time_ms", pa.list_(pa.int64())),
        pa.field("query", pa.list_(pa.string())),
        pa.field("value", pa.list_(pa.float32())),
    ]
)
_TARGET = ("target_item", "target_event", "target_time_ms", "target_value")


def write_histories(dataset: Storage, encoder: Encoder, bundle: Storage, max_events: int) -> int:
    """Writes ``<bundle>/histories/*.parquet``, at most ``max_events`` of every user; gives the number of users."""
    manifest = dataset.manifest("dataset")
    if manifest is None:
        raise ArtefactError(f"There is no dataset at {dataset}", "", "Run 'distft prepare' first.")
    (bundle / FOLDER).make()
    done: set[str] = set()
    for split in ("test", "valid", "train"):
        for name in split_files(manifest, split):
            dataset.verify_file(name, manifest.files[name])
            table = _latest(read_table(dataset, name), split)
            table = table.filter(pc.invert(pc.is_in(table["user_id"], pa.array(sorted(done), pa.string()))))
            if len(table):
                done.update(table["user_id"].to_pylist())
                told = _told(table, encoder, max_events, with_target=split != "train")
                write_table(bundle, f"{FOLDER}/{name.replace('/', '-')}", told)
    return len(done)


def read_histories(bundle: Storage) -> Iterator[tuple[str, list[RawEvent]]]:
    """(user, events) of every user of ``bundle/histories/``; in a shop without a clock the time is the place."""
    for name in bundle.list(FOLDER):
        for batch in read_table(bundle, name).to_batches(max_chunksize=1_000):
            for row in batch.to_pylist():
                times = [place if time is None else time for place, time in enumerate(row["time_ms"])]
                columns = (row["item_id"], row["event"], times, row["query"], row["value"])
                yield row["user_id"], [RawEvent(*event) for event in zip(*columns, strict=True)]


def encoded(table: pa.Table, encoder: Encoder) -> Histories:
    """The rows of such a file as ``Encoder.encode_events`` encodes each; events of unknown types are left out.

    ``time_ms``, ``query`` and ``value`` may be missing. Raises DataError for columns that are no lists of one length,
    and for an event without an item that needs one.
    """
    lists = {name: table[name].combine_chunks() for name in SCHEMA.names[1:] if name in table.column_names}
    for name, column in lists.items():
        if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
            raise DataError(f"The column {name} is {column.type}", "a list for each user, with an entry for each event")
    all_lengths = {name: np.asarray(column.value_lengths().fill_null(0), np.int64) for name, column in lists.items()}
    lengths = all_lengths["event"]
    for name, others in all_lengths.items():
        if not np.array_equal(others, lengths):
            row = int(np.flatnonzero(others != lengths)[0])
            what = f"User {table['user_id'][row]} has {lengths[row]} events and {others[row]} entries of {name}"
            raise DataError(what, "an entry for every event, or null")
    code_E = _rows(lists["event"].flatten(), lambda names: [_code(encoder, name) for name in names], 0).astype(np.int8)
    item_E = _rows(lists["item_id"].flatten(), encoder.item_rows, PAD).astype(np.int32)
    itemless = [encoder.event_code(name) for name in ITEMLESS_EVENTS if name in encoder.event_names]
    lacking_E = (item_E == PAD) & (code_E > 0) & ~np.isin(code_E, itemless)
    if lacking_E.any():
        name = encoder.event_names[int(code_E[lacking_E][0]) - 1]
        raise DataError(
            f"a {name} has no item_id", f"one; only these may lack it: {', '.join(sorted(ITEMLESS_EVENTS))}"
        )
    num_events = len(code_E)
    time_E = np.full(num_events, NO_TIME, np.int64)
    if "time_ms" in lists:
        time_E = np.asarray(lists["time_ms"].flatten().fill_null(NO_TIME), np.int64)
    value_E = np.full(num_events, np.nan, np.float32)
    if "value" in lists:
        value_E = np.asarray(lists["value"].flatten().cast(pa.float32()).fill_null(np.nan), np.float32)
    queries = lists["query"].flatten() if "query" in lists else pa.nulls(num_events, pa.string())
    query_offsets, query_tokens = _tokens(queries, encoder)
    row_E = np.repeat(np.arange(len(lengths)), lengths)
    chosen = np.flatnonzero(code_E > 0)
    # By time where all events that are followed have one, else as listed.
    untimed = np.zeros(len(lengths), np.bool_)
    untimed[row_E[chosen][time_E[chosen] == NO_TIME]] = True
    chosen = chosen[np.lexsort((np.where(untimed[row_E[chosen]], 0, time_E[chosen]), row_E[chosen]))]
    flat = Histories(
        offsets=ragged.offsets_of(lengths),
        item_row=item_E,
        event=code_E,
        time_ms=time_E,
        query_offsets=query_offsets,
        query_tokens=query_tokens,
        user_row=np.full(len(lengths), -1, np.int32),
        value=encoder.labels(code_E, value_E),
    )
    return ragged.gather_events(flat, chosen, np.bincount(row_E[chosen], minlength=len(lengths)), flat.user_row)


def _code(encoder: Encoder, name: str) -> int:
    return encoder.event_code(name) if name in encoder.event_names else 0


def _rows(
    values: pa.Array, look_up: Callable[[list[str]], Sequence[int] | NDArray[np.int32]], missing: int
) -> NDArray[np.int64]:
    """What ``look_up`` gives for each text, asked once for every different one; ``missing`` for null."""
    texts = values.cast(pa.string()).dictionary_encode()
    found = np.append(np.asarray(look_up(texts.dictionary.to_pylist()), np.int64), missing)
    return found[np.asarray(texts.indices.fill_null(len(found) - 1), np.int64)]


def _tokens(values: pa.Array, encoder: Encoder) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(query_offsets, query_tokens) of the words of each search; none for null."""
    texts = values.cast(pa.string()).dictionary_encode()
    words = [*(encoder.tokens(text) for text in texts.dictionary.to_pylist()), []]
    starts = ragged.offsets_of(np.array([len(row) for row in words], np.int64))
    which = np.asarray(texts.indices.fill_null(len(words) - 1), np.int64)
    lengths = np.diff(starts)[which]
    flat = np.array([token for row in words for token in row], np.int32)
    return ragged.offsets_of(lengths), flat[ragged.ranges(starts[which], lengths)]


def _latest(table: pa.Table, split: str) -> pa.Table:
    """The last row of every user: of the last target, or the last part of a long history."""
    order = [("user_id", "ascending"), ("part" if split == "train" else "target_time_ms", "ascending")]
    table = table.append_column("row", pa.array(np.arange(len(table)))).sort_by([*order, ("row", "ascending")])
    users = table["user_id"].to_numpy(zero_copy_only=False)
    return table.filter(pa.array(np.append(users[1:] != users[:-1], True)[: len(users)]))


def _told(table: pa.Table, encoder: Encoder, max_events: int, *, with_target: bool) -> pa.Table:
    """Rows of a split in the shop's words, the target of each as its last event."""
    histories = ragged.from_table(table)
    if with_target:
        histories = _with_targets(histories, [table[name].to_numpy() for name in _TARGET])
    start = np.maximum(histories.offsets[:-1], histories.offsets[1:] - max_events)
    histories = ragged.gather(histories, start, histories.offsets[1:], histories.user_row)
    offsets = pa.array(histories.offsets.astype(np.int32))
    columns = [table["user_id"].combine_chunks().cast(pa.string())]
    columns += [pa.ListArray.from_arrays(offsets, values) for values in _columns(histories, encoder)]
    return pa.table(columns, schema=SCHEMA)


def _with_targets(histories: Histories, target: list[NDArray[np.generic]]) -> Histories:
    item, event, time_ms, value = target
    ones = np.arange(len(histories) + 1, dtype=np.int64)
    targets = Histories(
        offsets=ones,
        item_row=item.astype(np.int32),
        event=event.astype(np.int8),
        time_ms=time_ms.astype(np.int64),
        query_offsets=np.zeros(len(histories) + 1, np.int64),
        query_tokens=np.zeros(0, np.int32),
        user_row=histories.user_row,
        value=value.astype(np.float32),
    )
    both = ragged.concat([histories, targets])
    num_events, lengths = int(histories.offsets[-1]), histories.lengths
    order = np.insert(np.arange(num_events), histories.offsets[1:], num_events + np.arange(len(histories)))
    return ragged.gather_events(both, order.astype(np.int64), lengths + 1, histories.user_row)


def _columns(histories: Histories, encoder: Encoder) -> list[pa.Array]:
    """Item id, event type, time, query and value of every event; null where there is none."""
    rows = histories.item_row
    ids = pa.array(encoder.item_ids, pa.string()).take(pa.array(rows)).to_numpy(zero_copy_only=False)
    ids[rows == UNKNOWN] = UNKNOWN_WORD
    item_id = pa.array(ids, pa.string(), mask=rows == PAD)
    event = pa.array(encoder.event_names, pa.string()).take(pa.array(histories.event.astype(np.int64) - 1))
    time_ms = pa.array(histories.time_ms, pa.int64(), mask=histories.time_ms == NO_TIME)
    words = [word or UNKNOWN_WORD for word in encoder.token_words]
    tokens = pa.array(words, pa.string()).take(pa.array(histories.query_tokens))
    lists = pa.ListArray.from_arrays(pa.array(histories.query_offsets.astype(np.int32)), tokens)
    query = pc.if_else(pc.greater(pc.list_value_length(lists), 0), pc.binary_join(lists, " "), None)
    least = encoder.label_at_least or 0.0
    shown = np.isin(histories.event, encoder.label_codes)
    values = histories.value if len(histories.value) else np.zeros(len(rows), np.float32)
    value = pa.array(np.where(values >= 0.5, least, least - 1).astype(np.float32), mask=~shown)
    return [item_id, event, time_ms, query, value]
