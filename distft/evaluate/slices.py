"""Groups of targets that a mean over all of them hides: short histories, rare items, other events, what is new.

Enters: the table of ranks, and how often each item was trained on. Leaves: for every way of grouping, which targets are
in which group. Surprising choice: the groups are the same for every dataset, not its quantiles, so that two shops and
two days of one shop can be compared; a group without targets is left out.

Shape legend: T targets, N item rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distft.schema import NUM_RESERVED

LENGTHS = {"0": 0, "1-4": 1, "5-9": 5, "10-19": 10, "20-49": 20, "50-99": 50, "100+": 100}
"""Groups of history lengths, in events: name → the shortest."""

HEAD_SHARE = 0.2
"""Share of the items that are the head of the popularity list."""

Masks = Mapping[str, Mapping[str, NDArray[np.bool_]]]


def slices(table: pa.Table, counts_N: NDArray[np.int64], event_names: Sequence[str]) -> Masks:
    """Way of grouping → group → mask_T; every target is in exactly one group of each way.

    - history_length: events before the target.
    - popularity: of the target: head (among the fifth of the items with most target events in training), tail, and
      cold: without any, or not in the catalogue.
    - event: the type of the target.
    - seen: whether the history holds the target's item.
    """
    columns = {name: table.column(name).to_numpy() for name in ("history_length", "target_item", "target_event")}
    seen_T = table.column("seen_before").to_numpy(zero_copy_only=False)
    starts = list(LENGTHS.values())
    length_T = np.searchsorted(starts, columns["history_length"], side="right") - 1
    popularity_T = popularity_group(counts_N)[columns["target_item"]]
    groups = {
        "history_length": {name: length_T == index for index, name in enumerate(LENGTHS)},
        "popularity": {name: popularity_T == index for index, name in enumerate(("head", "tail", "cold"))},
        "event": {name: columns["target_event"] == code for code, name in enumerate(event_names, start=1)},
        "seen": {"seen before": seen_T, "new": ~seen_T},
    }
    return {way: {name: mask_T for name, mask_T in some.items() if mask_T.any()} for way, some in groups.items()}


def popularity_group(counts_N: NDArray[np.int64]) -> NDArray[np.int8]:
    """0 for item rows of the head, 1 for the tail, 2 for items without a target event in training."""
    trained = np.flatnonzero(counts_N[NUM_RESERVED:] > 0) + NUM_RESERVED
    ranked = trained[np.argsort(-counts_N[trained], kind="stable")]
    group_N = np.full(len(counts_N), 2, np.int8)
    group_N[ranked] = 1
    group_N[ranked[: int(np.ceil(HEAD_SHARE * len(ranked)))]] = 0
    return group_N
