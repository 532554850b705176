"""The work of prepare on one read task or one partition: what a process of the cluster runs.

Each function reads work files, writes work files or shards, and returns a small JSON value for the driver. Nothing
here knows Ray, the number of tasks or their order, so that it runs in a test as it runs on a cluster.

    read → (exchange) → clean → k-core on the driver → count → encoder on the driver → write
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distft.data import ragged
from distft.data.clean import CANCELLED, DUPLICATE, REPEATED, UNLABELLED, cancelled, first_of_duplicates, repeated
from distft.data.encode import Encoder
from distft.data.exchange import SCHEMA as EXCHANGED
from distft.data.exchange import ExchangeWriter, read_partition
from distft.data.labels import labels, unlabelled
from distft.data.parquet import write_tables
from distft.data.partition import NONE, Partition, load_arrays, save_arrays
from distft.data.profile import Periods, profile
from distft.data.pseudonyms import discreet, same_pseudonyms
from distft.data.sources.base import EventBatch, ReadTask, rejected_schema
from distft.data.split import TEST, TRAIN, VALID, Plan, find_leaks, parts, target_rows
from distft.data.stats import NUM_EXAMPLES
from distft.data.text import words
from distft.data.values import count_values, settled
from distft.job import Job
from distft.schema import PAD, UNKNOWN, Histories, target_schema, train_schema
from distft.storage import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ROW_EVENTS = 10_000
"""A user with more events takes several rows of ``train/``."""

CHUNK_EVENTS = 1 << 21
"""Events of the rows that are built and written at once."""


@dataclass(frozen=True)
class Context:
    """What all tasks of one prepare share."""

    job: Job
    staging: Storage
    event_names: tuple[str, ...]
    num_partitions: int
    key_digest: str | None = None
    """Of the key of ``data.pseudonyms``."""

    @property
    def work(self) -> Storage:
        """The folder of the work files."""
        return self.staging / "work"

    @property
    def target_codes(self) -> NDArray[np.int8]:
        """Codes of the events that are predicted."""
        return np.array([self.event_names.index(name) + 1 for name in self.job.data.target_events], np.int8)


# -- read --------------------------------------------------------------------------------------------------


def read(context: Context, number: int, source: int, task: ReadTask) -> dict[str, Any]:
    """Reads one task of source ``source`` into the exchange file ``read-<number>``; rejects go to ``rejected/``."""
    account = _ReadAccount()
    with ExchangeWriter(context.work, f"read-{number:05d}", context.num_partitions) as writer:
        tables = _without_rejected(context, _batches(context, source, task), writer, account)
        if not write_tables(context.staging, f"rejected/{number:05d}.parquet", rejected_schema(), tables):
            context.staging.delete(f"rejected/{number:05d}.parquet")
    return {**vars(account), "partitions": writer.partitions}


def _batches(context: Context, source: int, task: ReadTask) -> Iterator[EventBatch]:
    """What the source reads, with pseudonyms where the job wants them."""
    config, digest = context.job.data.pseudonyms, context.key_digest
    pseudonyms = None if config is None else same_pseudonyms(config, digest or "")
    with discreet(pseudonyms is not None):
        for batch in context.job.data.events[source].open().read(task):
            yield batch if pseudonyms is None else pseudonyms.batch(batch)


@dataclass
class _ReadAccount:
    rows: int = 0
    left_out: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)


def _without_rejected(
    context: Context, batches: Iterable[EventBatch], writer: ExchangeWriter, account: _ReadAccount
) -> Iterator[pa.Table]:
    """Sends the events to the exchange and gives the rejected rows."""
    for batch in batches:
        cancels = pc.fill_null(pc.less(batch.events["quantity"], 0), False)
        account.rows += len(batch.events) - (pc.sum(cancels).as_py() or 0) + len(batch.rejected) + batch.num_left_out
        account.left_out += batch.num_left_out
        account.events.update(_counted(batch.events["event"].filter(pc.invert(cancels))))
        account.rejected.update(_counted(batch.rejected["reason"]))
        _keep_examples(account.examples, batch.rejected)
        writer.add(_exchanged(batch.events, context.event_names))
        if len(batch.rejected):
            yield batch.rejected


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    counts = pc.value_counts(column.cast(pa.string()))
    return {one["values"]: one["counts"] for one in counts.to_pylist()}


def _keep_examples(examples: dict[str, list[str]], rejected: pa.Table) -> None:
    for reason in pc.unique(rejected["reason"]).to_pylist():
        known = examples.setdefault(reason, [])
        if len(known) < NUM_EXAMPLES:
            some = rejected.filter(pc.equal(rejected["reason"], reason)).slice(0, NUM_EXAMPLES - len(known))
            known += [f"{row['file']}:{row['row']}: {row['raw'][:200]}" for row in some.to_pylist()]


def _exchanged(events: pa.Table, event_names: Sequence[str]) -> pa.Table:
    """The events with codes for their types, as the exchange holds them."""
    code = pc.index_in(events["event"].cast(pa.string()), value_set=pa.array(event_names))
    coded = events.set_column(events.column_names.index("event"), "event", pc.add(code, 1).cast(pa.int8()))
    return pa.Table.from_arrays([coded[name] for name in EXCHANGED.names], schema=EXCHANGED)


# -- clean -------------------------------------------------------------------------------------------------


def clean(context: Context, number: int, exchange: dict[str, list[int]]) -> dict[str, Any]:
    """Sorts and cleans one partition into the work file ``clean-<number>``."""
    events = Partition.sort(read_partition(context.work, list(exchange), list(exchange.values())))
    filtered = Counter[str]()
    if context.job.data.clean.drop_duplicates:
        keep = first_of_duplicates(events)
        filtered[DUPLICATE] = int((~keep & ~(events.quantity < 0)).sum())
        events = events.where(keep)
    undone = cancelled(events)
    filtered[CANCELLED] = int(undone.sum())
    events = events.where(~undone & ~(events.quantity < 0))
    silent = unlabelled(events, _are_targets(context, events), context.job.data.label)
    if silent.any():
        filtered[UNLABELLED] = int(silent.sum())
        events = events.where(~silent)
    window_s = context.job.data.clean.repeat_window_s
    if window_s:  # after the cancellations: one that was undone is no reason to drop the one that was bought again
        again = repeated(events, window_s * 1000)
        filtered[REPEATED] = int(again.sum())
        events = events.where(~again)
    events.save(context.work, f"clean-{number:05d}")
    return {
        "events": len(events),
        "users": len(events.user_ids),
        "items": len(events.item_ids),
        "filtered": filtered,
        "first_ms": int(events.time_ms.min()) if len(events) else None,
        "last_ms": int(events.time_ms.max()) if len(events) else None,
    }


# -- count -------------------------------------------------------------------------------------------------


def count(context: Context, number: int, plan: Plan, periods: Periods | None) -> dict[str, Any]:
    """Counts what encoder and report need of one partition, the long lists of it into ``count-<number>``."""
    events, part, is_target = _split(context, number, plan)
    size, has_item = len(events.item_ids), events.item != NONE
    train = has_item & (part == TRAIN)
    vocabulary = _count_words(events, part)
    arrays = {
        "item_ids": events.item_ids,
        "targets": np.bincount(events.item[train & is_target], minlength=size),
        "train": np.bincount(events.item[train], minlength=size),
        "valid": np.bincount(events.item[is_target & (part == VALID)], minlength=size),
        "test": np.bincount(events.item[is_target & (part == TEST)], minlength=size),
        "known": np.bincount(events.item[has_item & (part < TEST)], minlength=size) > 0,
        "words": np.array(sorted(vocabulary), np.object_),
        "word_counts": np.array([vocabulary[word] for word in sorted(vocabulary)], np.int64),
    }
    save_arrays(context.work, f"count-{number:05d}", arrays)
    if context.job.data.clean.clip_value:
        count_values(context.work, f"values-{number:05d}", events.value, part == TRAIN)
    present = np.diff(events.user_offsets) > 0
    trains = np.bincount(events.user[part == TRAIN], minlength=len(present)) > 0
    users = {"user_ids": events.user_ids[present], "trains": trains[present]}
    save_arrays(context.work, f"users-{number:05d}", users)
    by_type = np.bincount(events.event, minlength=len(context.event_names) + 1)[1:]
    return {
        "users": int(present.sum()),
        "kept": dict(zip(context.event_names, by_type.tolist(), strict=True)),
        "targets": [int((is_target & (part == one)).sum()) for one in (TRAIN, VALID, TEST)],
        "profile": profile(events, part, is_target, periods, len(context.event_names)),
    }


def _split(context: Context, number: int, plan: Plan) -> tuple[Partition, NDArray[np.int8], NDArray[np.bool_]]:
    """(kept events, part of each, whether each is of a target type) of a partition."""
    events = Partition.load(context.work, f"clean-{number:05d}")
    core = load_arrays(context.work, f"core-{number:05d}", ["users", "items"])
    keep = core["users"][events.user] & (np.append(core["items"], True)[events.item])
    if plan.by == "time":
        keep |= events.time_ms >= plan.valid_start_ms
    events = events.where(keep)
    is_target = _are_targets(context, events)
    return events, parts(events, is_target, plan), is_target


def _are_targets(context: Context, events: Partition) -> NDArray[np.bool_]:
    return np.asarray(np.isin(events.event, context.target_codes) & (events.item != NONE))


def _count_words(events: Partition, part: NDArray[np.int8]) -> Counter[str]:
    times = np.bincount(events.query[(part == TRAIN) & (events.query != NONE)], minlength=len(events.queries))
    vocabulary = Counter[str]()
    for query, number in zip(events.queries.tolist(), times.tolist(), strict=True):
        if number:
            for word in words(query):
                vocabulary[word] += number
    return vocabulary


# -- write -------------------------------------------------------------------------------------------------


def write(context: Context, number: int, plan: Plan, first_user: int) -> dict[str, Any]:
    """Writes the shards of one partition; ``first_user``: users of the partitions before it."""
    events, part, is_target = _split(context, number, plan)
    encoder = _encoder(context.staging.uri)
    label, values = context.job.data.label, settled(events.value, encoder.value_bounds)
    if label:
        code = context.event_names.index(label.event) + 1 if label.event else PAD
        values = np.where(is_target, labels(events, label, code), values)
    events = replace(events, value=values)
    present = np.diff(events.user_offsets) > 0
    user_row = (first_user + np.cumsum(present) - 1).astype(np.int32)
    encoded = _encoded(events, encoder)
    in_train = part == TRAIN
    everything = _Rows(events, encoded, user_row)
    trained = everything if in_train.all() else _Rows.of_train(events, encoded, user_row, in_train)
    name = f"{number:05d}.parquet"
    train_rows = write_tables(context.staging, f"train/{name}", train_schema(), _train_tables(trained))
    splits: dict[str, Any] = {"train": {"rows": train_rows, "events": int(in_train.sum())}}
    if label:
        splits["train"]["positives"] = int(events.value[is_target & in_train].sum())
    for split, wanted in (("valid", VALID), ("test", TEST)):
        rows = target_rows(events, part, is_target, plan, wanted, context.job.data.max_context)
        base = trained if rows.in_train else everything
        target = _Targets(rows.target, events.user[rows.target], encoded, events.time_ms, events.value)
        account: dict[str, Any] = {"leaks": [], "rows": 0, "events": 0, "unknown_targets": 0, "without_history": 0}
        tables = _target_tables(base, rows.starts, rows.ends, target, plan, account)
        write_tables(context.staging, f"{split}/{name}", target_schema(), tables)
        splits[split] = account
        if label:
            account["positives"] = int(target.value[target.place].sum())
    return splits


@lru_cache(maxsize=1)
def _encoder(staging: str) -> Encoder:
    """The encoder of this prepare (staging folders have a name of their own), once a process."""
    return Encoder.load(Storage(staging) / "encoder")


@dataclass(frozen=True, eq=False)
class _Rows:
    """Encoded events of a partition, from which rows are cut."""

    events: Partition
    encoded: Histories
    user_row: NDArray[np.int32]

    @classmethod
    def of_train(
        cls, events: Partition, encoded: Histories, user_row: NDArray[np.int32], in_train: NDArray[np.bool_]
    ) -> _Rows:
        places = np.flatnonzero(in_train)
        only = ragged.gather(encoded, places, places + 1, np.zeros(len(places), np.int32))
        return cls(events.where(in_train), only, user_row)

    def cut(self, starts: NDArray[np.int64], ends: NDArray[np.int64], user: NDArray[np.int32]) -> Histories:
        return ragged.gather(self.encoded, starts, ends, self.user_row[user])

    def names(self, user: NDArray[np.int32]) -> pa.Array:
        return pa.array(self.events.user_ids[user], pa.string())


@dataclass(frozen=True, eq=False)
class _Targets:
    place: NDArray[np.int64]
    user: NDArray[np.int32]
    encoded: Histories
    time_ms: NDArray[np.int64]
    value: NDArray[np.float32]

    def columns(self, rows: slice) -> list[pa.Array]:
        place = self.place[rows]
        columns = (self.encoded.item_row, self.encoded.event, self.time_ms, self.value)
        return [pa.array(column[place]) for column in columns]


def _encoded(events: Partition, encoder: Encoder) -> Histories:
    """The events with item rows and token rows; one row, the cuts are made later."""
    item_row = np.append(encoder.item_rows(events.item_ids.tolist()), np.int32(PAD))[events.item]
    tokens = [encoder.tokens(query) for query in events.queries.tolist()]
    lengths = np.array([*map(len, tokens), 0], np.int64)
    flat = np.array([token for row in tokens for token in row], np.int32)
    starts = np.append(ragged.offsets_of(lengths[:-1])[:-1], 0)
    return Histories(
        offsets=np.array([0, len(events)], np.int64),
        item_row=item_row,
        event=events.event,
        time_ms=events.time_ms,
        query_offsets=ragged.offsets_of(lengths[events.query]),
        query_tokens=flat[ragged.ranges(starts[events.query], lengths[events.query])],
        user_row=np.zeros(1, np.int32),
        value=events.value,
    )


def _train_tables(rows: _Rows) -> Iterator[pa.Table]:
    """A row a user, or several of at most ``MAX_ROW_EVENTS`` events."""
    offsets = rows.events.user_offsets
    num_rows = -(-np.diff(offsets) // MAX_ROW_EVENTS)
    user = np.repeat(np.arange(len(num_rows)), num_rows).astype(np.int32)
    part = ragged.ranges(np.zeros(len(num_rows), np.int64), num_rows)
    starts = offsets[user] + part * MAX_ROW_EVENTS
    ends = np.minimum(starts + MAX_ROW_EVENTS, offsets[user + 1])
    for some in _chunks(ends - starts):
        histories = rows.cut(starts[some], ends[some], user[some])
        columns = ragged.to_arrays(histories, rows.names(user[some]), part[some].astype(np.int32))
        yield pa.Table.from_arrays(columns, schema=train_schema())


def _target_tables(
    base: _Rows,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    target: _Targets,
    plan: Plan,
    account: dict[str, Any],
) -> Iterator[pa.Table]:
    """A row a target; each table is checked for leaks as it is written."""
    for some in _chunks(ends - starts):
        user = target.user[some]
        histories = base.cut(starts[some], ends[some], user)
        columns = target.columns(some)
        if plan.leak_checked:
            time_ms = columns[2].to_numpy()
            leaks = find_leaks(histories, base.events.user_ids[user], time_ms, plan.ties)
            account["leaks"].append(leaks.to_json())
        account["rows"] += len(histories)
        account["events"] += int(histories.offsets[-1])
        account["unknown_targets"] += int((columns[0].to_numpy() == UNKNOWN).sum())
        account["without_history"] += int((histories.lengths == 0).sum())
        arrays = ragged.to_arrays(histories, base.names(user), np.zeros(len(user), np.int32))
        yield pa.Table.from_arrays(arrays + columns, schema=target_schema())


def _chunks(lengths: NDArray[np.int64]) -> Iterator[slice]:
    """Runs of rows that hold about ``CHUNK_EVENTS`` events together."""
    chunk = np.cumsum(lengths + 1) // CHUNK_EVENTS
    bounds = np.flatnonzero(np.diff(chunk, prepend=-1, append=-2)).tolist() if len(lengths) else []
    for start, end in pairwise(bounds):
        yield slice(start, end)
