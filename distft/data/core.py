"""The k-core of a log that rests in partitions: the one step of cleaning that needs all of it at once.

Enters: the clean files. Leaves: for every partition a file of the users and items that stay. The driver holds two
integers an event, and nothing at all where the job asks for no minimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distft.data.clean import KCore, k_core
from distft.data.partition import NONE, load_arrays, save_arrays
from distft.data.split import TRAIN, Plan, time_parts
from distft.storage import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray


def write_cores(work: Storage, sizes: Sequence[tuple[int, int]], minimum: tuple[int, int], plan: Plan) -> KCore:
    """Writes ``core-<number>`` for every partition; gives the core of the whole.

    ``sizes``: users and items of each partition; ``minimum``: events that each user and item must have. With a split
    by time the training part alone counts, and falls.
    """
    names = [f"clean-{number:05d}" for number in range(len(sizes))]
    if max(minimum) <= 1:
        for number, (users, items) in enumerate(sizes):
            arrays = {"users": np.ones(users, np.bool_), "items": np.ones(items, np.bool_)}
            save_arrays(work, f"core-{number:05d}", arrays)
        return KCore(np.ones(0, np.bool_), np.ones(0, np.bool_))
    item_ids = [pa.array(load_arrays(work, name, ["item_ids"])["item_ids"], pa.string()) for name in names]
    known = pc.unique(pa.chunked_array(item_ids, pa.string()))
    local = [pc.index_in(ids, value_set=known).to_numpy().astype(np.int32) for ids in item_ids]
    firsts = np.concatenate([[0], np.cumsum([users for users, _ in sizes])]).tolist()
    with ThreadPoolExecutor() as threads:
        pairs = list(threads.map(partial(_pairs, work, plan), names, local, firsts))
    core = k_core(pairs, (firsts[-1], len(known)), minimum)
    for number, (first, end) in enumerate(pairwise(firsts)):
        arrays = {"users": core.users[first:end], "items": core.items[local[number]]}
        save_arrays(work, f"core-{number:05d}", arrays)
    return core


def _pairs(
    work: Storage, plan: Plan, name: str, local: NDArray[np.int32], first_user: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """User and item of every event that counts, numbered over all partitions."""
    by_time = plan.by == "time"
    events = load_arrays(work, name, ["user", "item", *(["time_ms"] if by_time else [])])
    user, item = events["user"] + np.int32(first_user), np.append(local, np.int32(NONE))[events["item"]]
    if not by_time:
        return user, item
    counts = time_parts(events["time_ms"], plan) == TRAIN
    return user[counts], item[counts]
