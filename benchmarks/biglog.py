"""A made-up shop's log of any size as Parquet files, made in seconds and the same every time.

Enters: numbers of events, users and items. Leaves: files of a million rows each, in the order of time, with the
columns user_id, item_id, event, timestamp (ms) and value. Items and users are as unequally active as in real logs
(power law and lognormal), so that some fall below a 5-core; one row in two hundred stands there twice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FILE_ROWS = 1_000_000
EVENTS = ("view", "cart", "purchase")
EVENT_SHARES = (0.80, 0.08, 0.12)
REPEATED_SHARE = 0.005
START_MS, SPAN_MS = 1_700_000_000_000, 180 * 86_400_000


def write_log(folder: Path, num_events: int, num_users: int, num_items: int) -> list[str]:
    """Writes the log; gives the names of its files, in order."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(20_000_000)
    active = np.cumsum(rng.lognormal(0.0, 1.2, num_users))
    popular = np.cumsum(np.arange(1, num_items + 1, dtype=np.float64) ** -1.3)
    number = rng.permutation(num_items)  # popularity and id have nothing to do with each other
    names = []
    step_ms = SPAN_MS / num_events
    for first in range(0, num_events, FILE_ROWS):
        size = min(FILE_ROWS, num_events - first)
        user = np.searchsorted(active, rng.random(size) * active[-1])
        item = number[np.searchsorted(popular, rng.random(size) * popular[-1])]
        event = rng.choice(len(EVENTS), size, p=EVENT_SHARES).astype(np.int8)
        time_ms = (START_MS + (first + np.arange(size)) * step_ms).astype(np.int64)
        value = (5 + item % 200 + (item % 7) / 8).astype(np.float32)
        # A repeated row takes the place of the one after it.
        source = np.arange(size)
        repeated = np.flatnonzero(rng.random(size) < REPEATED_SHARE)
        source[repeated] = np.maximum(repeated - 1, 0)
        table = pa.table(
            {
                "user_id": _ids("u", user[source]),
                "item_id": _ids("i", item[source]),
                "event": pa.DictionaryArray.from_arrays(event[source], list(EVENTS)).cast(pa.string()),
                "timestamp": time_ms[source],
                "value": value[source],
            }
        )
        names.append(f"part-{len(names):05d}.parquet")
        pq.write_table(table, folder / names[-1], compression="zstd")
    return names


def _ids(prefix: str, numbers: np.ndarray) -> pa.Array:
    """Ids such as i0000417."""
    known, codes = np.unique(numbers, return_inverse=True)
    return pa.DictionaryArray.from_arrays(
        codes.astype(np.int32), [f"{prefix}{number:07d}" for number in known.tolist()]
    ).cast(pa.string())
