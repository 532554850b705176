"""The baseline that knows no model: what others had in their histories close to what this visitor has in theirs.

Enters: the training split, then histories. Leaves: the nearest neighbours of every item, and scores from them. Two
items are alike by how often one comes within ``WINDOW`` events of the other, divided by the square root of how often
either comes at all (item-to-item cosine: Sarwar et al., 2001; Linden et al., 2003). A history's score of an item is the
sum over its latest items, each counting less than the one after it.

Surprising choice: counts are thinned while they are taken. Where the pairs of a large log would not fit in memory, each
item keeps those that it has seen most often so far; a pair that comes up rarely and late may be counted too low.

Shape legend: N item rows, P pairs, B histories, C items of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distft.data.encode import Encoder
from distft.data.ragged import offsets_of, ranges
from distft.data.shards import load_histories, split_files
from distft.evaluate.baselines import faint_shares
from distft.schema import NUM_RESERVED, Histories
from distft.storage import Storage
from distft.topk import ScoreChunk

WINDOW = 10
"""Events within which two items of a history are close."""

NUM_NEIGHBOURS = 100
"""Kept of each item."""

NUM_LATEST = 100
"""Latest events of a history that count."""

DECAY = 0.98
"""What an event counts, of what the one after it counts."""

MAX_PAIRS = 8_000_000
"""New pairs that are gathered before they are counted (64 MB); of half as many different ones all are kept."""

MAX_EVENTS = 500_000
"""Events whose pairs are made at once."""

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Neighbours:
    """Item row i's neighbours are ``item_P[offsets[i]:offsets[i + 1]]``, the nearest first, with ``likeness_P``."""

    offsets: Int64
    item_P: NDArray[np.int32]
    likeness_P: NDArray[np.float32]


def neighbours_of(dataset: Storage, num_items: int) -> Neighbours:
    """The neighbours of every item by the training split of a dataset; one shard of it is in memory at a time."""
    manifest = dataset.manifest("dataset")
    names = split_files(manifest, "train") if manifest else []
    return neighbours((load_histories(dataset, "train", [name]) for name in names), num_items)


def neighbours(parts: Iterable[Histories], num_items: int) -> Neighbours:
    """The neighbours of every item by the histories of all parts."""
    times_N = np.zeros(num_items, np.int64)
    key_P, count_P = np.zeros(0, np.int64), np.zeros(0, np.int64)
    new: list[Int64] = []
    for part in parts:
        times_N += np.bincount(part.item_row, minlength=num_items)
        for start in range(0, len(part.item_row), MAX_EVENTS):
            new.append(_pairs(part, start, start + MAX_EVENTS, num_items))
            if sum(map(len, new)) > MAX_PAIRS:
                key_P, count_P = _thinned(*_summed(key_P, count_P, new), num_items)
                new = []
    key_P, count_P = _summed(key_P, count_P, new)
    low_P, high_P = np.divmod(key_P, num_items)
    likeness_P = count_P / np.sqrt(times_N[low_P].astype(np.float64) * times_N[high_P])
    item_P, other_P = np.concatenate([low_P, high_P]), np.concatenate([high_P, low_P])
    likeness_P = np.concatenate([likeness_P, likeness_P])
    kept_P = _best_of_each(item_P, other_P, likeness_P, NUM_NEIGHBOURS)
    offsets = offsets_of(np.bincount(item_P[kept_P], minlength=num_items))
    return Neighbours(offsets, other_P[kept_P].astype(np.int32), likeness_P[kept_P].astype(np.float32))


def co_occurrence(near: Neighbours, encoder: Encoder, histories: Histories) -> ScoreChunk:
    """The items most like the latest ones of each history, then the popular ones."""
    row_E = np.repeat(np.arange(len(histories)), histories.lengths)
    age_E = histories.offsets[1:][row_E] - 1 - np.arange(len(row_E))
    counted_E = (histories.item_row >= NUM_RESERVED) & (age_E < NUM_LATEST)
    row_E, age_E, item_E = row_E[counted_E], age_E[counted_E], histories.item_row[counted_E]
    starts = near.offsets[item_E]
    lengths = near.offsets[item_E + 1] - starts
    place_P = ranges(starts, lengths)
    item_P = near.item_P[place_P]
    order_P = np.argsort(item_P, kind="stable")
    item_P, place_P = item_P[order_P].astype(np.int64), place_P[order_P]
    row_P = np.repeat(row_E, lengths)[order_P]
    value_P = near.likeness_P[place_P] * np.repeat(DECAY**age_E, lengths)[order_P]
    share_N = faint_shares(encoder)

    def scores(start: int, end: int) -> Tensor:
        low, high = np.searchsorted(item_P, [start, end])
        place_P = row_P[low:high] * (end - start) + item_P[low:high] - start
        sum_P = np.bincount(place_P, value_P[low:high], len(histories) * (end - start))
        return torch.from_numpy(sum_P.astype(np.float32)).view(len(histories), end - start) + share_N[start:end]

    return scores


def _pairs(part: Histories, start: int, end: int, num_items: int) -> Int64:
    """Low * num_items + high of every pair of different items of which the first is one of the events start..end-1."""
    row_E = np.repeat(np.arange(len(part)), part.lengths)
    item_E = part.item_row.astype(np.int64)
    found = []
    for apart in range(1, WINDOW + 1):
        first = np.arange(start, min(end, len(item_E) - apart))
        one, other = item_E[first], item_E[first + apart]
        pairs = (row_E[first] == row_E[first + apart]) & (one != other) & (np.minimum(one, other) >= NUM_RESERVED)
        found.append(np.minimum(one, other)[pairs] * num_items + np.maximum(one, other)[pairs])
    return np.concatenate(found)


def _summed(key_P: Int64, count_P: Int64, new: list[Int64]) -> tuple[Int64, Int64]:
    """Each key once, with the sum of its counts; a new key counts once each time that it comes."""
    some_P, times_P = np.unique(np.concatenate([key_P[:0], *new]), return_counts=True)
    key_P, count_P = np.concatenate([key_P, some_P]), np.concatenate([count_P, times_P])
    order = np.argsort(key_P)
    unique, first = np.unique(key_P[order], return_index=True)
    return unique, np.add.reduceat(count_P[order], first) if len(first) else count_P


def _thinned(key_P: Int64, count_P: Int64, num_items: int) -> tuple[Int64, Int64]:
    """All pairs while they are few, then those that are among the most frequent ones of either of their items."""
    if len(key_P) <= MAX_PAIRS // 2:
        return key_P, count_P
    each = max(NUM_NEIGHBOURS, MAX_PAIRS // (4 * num_items))
    low_P, high_P = np.divmod(key_P, num_items)
    kept = [_best_of_each(one, other, count_P, each) for one, other in ((low_P, high_P), (high_P, low_P))]
    places = np.unique(np.concatenate(kept))
    return key_P[places], count_P[places]


def _best_of_each(item_P: Int64, other_P: Int64, value_P: NDArray[np.float64] | Int64, number: int) -> Int64:
    """Places of the pairs with the ``number`` largest values of each item, by item and value; ties to the lower row."""
    order = np.lexsort((other_P, -value_P, item_P))
    ranked = item_P[order]
    place = np.arange(len(ranked)) - np.searchsorted(ranked, ranked, side="left")
    return np.asarray(order[place < number])
