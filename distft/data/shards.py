"""Deterministic, resumable reading of a dataset by training workers, and of its targets by evaluators.

Enters: a committed dataset, and which rank of how many asks. Leaves: this rank's rows of a given batch.

The rule: batch s of epoch e is a pure function of (dataset, seed, e, s), never of the number of workers. The shards
are dealt to ``num_streams`` virtual streams, in name order. Every stream has its own order, shuffled by (seed,
epoch, stream). Row t of the epoch is the next row of stream t mod num_streams; exhausted streams drop out. Rank r
of n owns the streams that are r modulo n, and holds only those in memory.

Surprising choice: nothing is iterated. The rows of any batch are computed from its number, so that a resumed run
needs no more than (epoch, step).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from distft.data import ragged
from distft.data.hashing import key, keyed, mix, permutation
from distft.data.parquet import read_table
from distft.data.units import Cutting
from distft.errors import ArtefactError, UsageError
from distft.schema import Histories
from distft.storage import Manifest, Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64 = NDArray[np.int64]

_COLUMNS = ("user_row", "item_row", "event", "query", "value")
_DRAWS = -1
"""In the place of a stream's number: keys of what is drawn at random, which are no stream's."""
_TARGETS = ("target_item", "target_event", "target_time_ms", "target_value")


@dataclass(frozen=True)
class Targets:
    """What is to be predicted after each history; all [rows]. ``item`` is UNKNOWN for an item without a row."""

    item: NDArray[np.int32]
    event: NDArray[np.int8]
    time_ms: NDArray[np.int64]
    value: NDArray[np.float32]


def split_files(manifest: Manifest, split: str) -> list[str]:
    """Names of a split's shards, in order."""
    return sorted(name for name in manifest.files if name.startswith(f"{split}/") and name.endswith(".parquet"))


def load_histories(dataset: Storage, split: str, files: Sequence[str] | None = None) -> Histories:
    """The rows of a split (or of some of its shards), after a check of their checksums. Raises ArtefactError."""
    manifest = _manifest(dataset)
    names = split_files(manifest, split) if files is None else files
    return ragged.concat([ragged.from_table(_read(dataset, manifest, name, ("time_ms",))) for name in names])


class TrainReader:
    """Reads ``train/`` by the rule above.

    ``windows``: "last" trains on the latest ``max_history`` + 1 events of each row; "all" on every window of that
    length, each starting with the event that ends the one before: every event is a target once; "each" on every
    target by itself, with its history (``target_codes`` are then those of the encoder).
    """

    def __init__(  # noqa: PLR0913  a reading plan is made of these numbers
        self,
        dataset: Storage,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_streams: int = 64,
        batch_size: int,
        windows: str = "last",
        max_history: int,
        target_codes: NDArray[np.int8] | None = None,
    ) -> None:
        if world_size > num_streams:
            raise UsageError(
                f"{world_size} workers cannot share {num_streams} reading streams",
                "at least one stream a worker",
                f"Raise train.num_streams to {world_size} or more, or use fewer workers.",
            )
        self._seed, self._batch_size, self._max_history = seed, batch_size, max_history
        manifest = _manifest(dataset)
        codes = np.zeros(0, np.int8) if target_codes is None else target_codes
        cutting = Cutting(windows, max_history, codes, bool(manifest.info.get("ordered", True)))
        files = split_files(manifest, "train")
        streams = [files[first::num_streams] for first in range(num_streams)]
        columns = ("time_ms",) if manifest.info.get("has_clock", True) else ()
        own: list[Histories] = []
        sizes = np.zeros(num_streams, np.int64)
        self._first = np.full(num_streams, -1, np.int64)  # a stream's first unit; -1: another rank's
        num_units = 0
        for number, names in enumerate(streams):
            if number % world_size == rank:
                rows = ragged.concat([ragged.from_table(_read(dataset, manifest, name, columns)) for name in names])
                own.append(rows)
                sizes[number] = cutting.counts(rows).sum()
                self._first[number] = num_units
                num_units += int(sizes[number])
            elif windows == "last":
                sizes[number] = sum(manifest.files[name]["rows"] for name in names)
            else:
                sizes[number] = sum(_num_units(dataset, name, cutting) for name in names)
        self._units = cutting.units(ragged.concat(own))
        self._plan = ReadingPlan(sizes)
        self._sizes = sizes
        self._order: tuple[int, Int64] = (-1, np.zeros(0, np.int64))
        self.rows_per_epoch = self._plan.num_rows
        self.steps_per_epoch = -(-self._plan.num_rows // batch_size)
        if not self.rows_per_epoch:
            raise ArtefactError(f"{dataset} has no training rows", "at least one", "Prepare the dataset again.")

    def step_rows(self, epoch: int, step: int) -> Histories:
        """Rows of this rank in batch ``step`` of ``epoch``, at most ``max_history`` + 1 events each; may be empty.

        Each has its ``key``, a hash of (seed, epoch, user row, place of the window's last event).
        """
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch} steps")
        first = step * self._batch_size
        stream, place = self._plan.rows(first, min(first + self._batch_size, self.rows_per_epoch))
        own = self._first[stream] >= 0
        units = self._epoch_order(epoch)[self._first[stream[own]] + place[own]]
        keys = keyed(key(self._seed, epoch, _DRAWS), self._units.hashes(units))
        return replace(self._units.rows(units), key=mix(keys).view(np.int64))

    def step_key(self, epoch: int, step: int) -> int:
        """A hash of (seed, epoch, step), as an int64: what all rows of a step share."""
        return int(np.array([key(self._seed, epoch, _DRAWS, step)], np.uint64).view(np.int64)[0])

    def micro_batches(self, histories: Histories, max_tokens: int) -> list[Histories]:
        """The rows grouped by length, so that rows × longest stays within ``max_tokens`` padded positions.

        A single row may exceed the budget: it is then alone.
        """
        length = np.clip(histories.lengths - 1, 1, self._max_history)
        order = np.argsort(-length, kind="stable")
        groups, start = [], 0
        while start < len(order):
            end = min(start + max(1, max_tokens // int(length[order[start]])), len(order))
            groups.append(ragged.take(histories, order[start:end]))
            start = end
        return groups

    def _epoch_order(self, epoch: int) -> Int64:
        """Unit at each place of each own stream, stream after stream."""
        if self._order[0] != epoch:
            orders = [
                self._first[stream] + permutation(key(self._seed, epoch, stream), int(self._sizes[stream]))
                for stream in np.flatnonzero(self._first >= 0).tolist()
            ]
            self._order = (epoch, np.concatenate(orders))
        return self._order[1]


class ReadingPlan:
    """Which stream, and which of its rows, stands at every place of an epoch; ``sizes``: rows of each stream."""

    def __init__(self, sizes: Int64) -> None:
        self.num_rows = int(sizes.sum())
        self._streams = np.argsort(-sizes, kind="stable")  # a round's streams are a prefix of these
        descending = sizes[self._streams]
        rounds = np.arange(int(sizes.max(initial=0)) + 1)
        self._alive = len(sizes) - np.searchsorted(descending[::-1], rounds, side="right")
        self._first = ragged.offsets_of(self._alive)

    def rows(self, start: int, end: int) -> tuple[Int64, Int64]:
        """(stream, place in the stream) of the rows ``start:end`` of the epoch."""
        row = np.arange(start, end)
        place = np.searchsorted(self._first, row, side="right") - 1
        nth = row - self._first[place]
        stream = np.empty(len(row), np.int64)
        for alive in np.unique(self._alive[place]).tolist():
            here = self._alive[place] == alive
            stream[here] = np.sort(self._streams[:alive])[nth[here]]
        return stream, place


class TargetReader:
    """The rows of ``valid/`` or ``test/`` that one rank scores: iterate over (Histories, Targets).

    Shards are dealt to ranks in name order. Histories are whole (up to ``data.max_context`` events), because the
    exclusion of seen items needs them.
    """

    def __init__(
        self, dataset: Storage, split: str, *, rank: int = 0, world_size: int = 1, batch_size: int = 256
    ) -> None:
        self._dataset, self._manifest, self._batch_size = dataset, _manifest(dataset), batch_size
        self._files = split_files(self._manifest, split)[rank::world_size]
        self.num_rows = sum(int(self._manifest.files[name]["rows"]) for name in self._files)

    def __iter__(self) -> Iterator[tuple[Histories, Targets]]:
        for name in self._files:
            table = _read(self._dataset, self._manifest, name, ("time_ms", *_TARGETS))
            histories = ragged.from_table(table)
            targets = [table[column].to_numpy() for column in _TARGETS]
            for start in range(0, len(histories), self._batch_size):
                rows = np.arange(start, min(start + self._batch_size, len(histories)))
                yield ragged.take(histories, rows), Targets(*(column[rows] for column in targets))


def _num_units(dataset: Storage, name: str, cutting: Cutting) -> int:
    """Units of a shard that another rank reads."""
    rows = ragged.from_table(read_table(dataset, name, ["user_row", "item_row", "event"]))
    return int(cutting.counts(rows).sum())


def _manifest(dataset: Storage) -> Manifest:
    manifest = dataset.manifest("dataset")
    if manifest is None:
        raise ArtefactError(f"There is no dataset at {dataset}", "a folder with a manifest.json", "Run prepare first.")
    return manifest


def _read(dataset: Storage, manifest: Manifest, name: str, more: Sequence[str]) -> pa.Table:
    if name not in manifest.files:
        raise ArtefactError(f"{dataset}/{name} is not a file of the dataset", "a file that its manifest lists")
    dataset.verify_file(name, manifest.files[name])
    return read_table(dataset, name, (*_COLUMNS, *more))
