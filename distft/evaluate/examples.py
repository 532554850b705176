"""A few visitors of a split as a person would see them: what they did, what they were shown, what they wanted.

Enters: the split and the table of ranks, in the same order. Leaves: titles (ids where there are none), for the page and
for nothing else: histories of people do not belong into metrics that are copied into a bundle. Surprising choice: the
visitors are spread evenly over the table, not picked by how well they were served.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distft.data.encode import Encoder
from distft.data.shards import Targets
from distft.schema import NUM_RESERVED, Histories

NUM_EXAMPLES = 10
NUM_EVENTS = 8
"""Latest events of a history that are shown."""

NUM_ITEMS = 10
AMONG = 5_000
"""The examples are taken from so many first targets, so that not the whole split is read for them."""


@dataclass(frozen=True)
class Example:
    """One visitor: (event, title or words) of the latest events, the oldest first, and how many came before these; the
    items shown, the best first; the target, and its rank (None for one that is not in the catalogue or was excluded).
    """

    history: list[tuple[str, str]]
    num_earlier: int
    shown: list[str]
    target: str
    target_event: str
    rank: int | None


def examples(batches: Iterable[tuple[Histories, Targets]], table: pa.Table, encoder: Encoder) -> list[Example]:
    """Ten of the ranked targets in the evaluation's ``table``; ``batches``: the same targets in the same order."""
    ranked = np.flatnonzero(pc.is_valid(table["rank_model"].slice(0, AMONG)).to_numpy(zero_copy_only=False))
    places = np.unique(np.linspace(0, max(0, len(ranked) - 1), NUM_EXAMPLES).astype(np.int64))
    wanted = ranked[places[: len(ranked)]].tolist()
    found: list[Example] = []
    first = 0
    for histories, targets in batches:
        for row in wanted[len(found) :]:
            if row < first + len(histories):
                found.append(_example(histories, targets, row - first, table.slice(row, 1).to_pylist()[0], encoder))
        first += len(histories)
        if len(found) == len(wanted):
            break
    return found


def _example(histories: Histories, targets: Targets, row: int, told: dict[str, object], encoder: Encoder) -> Example:
    raw = encoder.decode(histories, row)
    start, end = int(histories.offsets[row]), int(histories.offsets[row + 1])
    titles = encoder.titles(histories.item_row[start:end].tolist())
    words = [title or query or "?" for title, query in zip(titles, raw.queries, strict=True)]
    top, rank, target = told["top_model"], told["rank_model"], int(targets.item[row])
    assert isinstance(top, list) and isinstance(rank, int)
    return Example(
        history=list(zip(raw.events, words, strict=True))[-NUM_EVENTS:],
        num_earlier=max(0, end - start - NUM_EVENTS),
        shown=encoder.titles([item for item in top[:NUM_ITEMS] if item >= NUM_RESERVED]),
        target=encoder.titles([target])[0] or "an item that is not in the catalogue",
        target_event=encoder.event_names[int(targets.event[row]) - 1],
        rank=rank if rank <= encoder.num_items else None,
    )
