"""The made-up shop as a source: read tasks are ranges of user blocks, drawn when they are read.

Enters: the config. Leaves: a stream of event batches, one a block of users; item features; the oracle.
Surprising choice: nothing is stored and nothing is shared, so that a log of any length needs the memory of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distft.data.sources.base import (
    EventBatch,
    FeatureTable,
    Oracle,
    ReadTask,
    event_schema,
    rejected_schema,
)
from distft.data.sources.synthetic.config import Config
from distft.data.sources.synthetic.oracle import ShopOracle
from distft.data.sources.synthetic.sessions import BLOCK_USERS, NOTHING, PURCHASE, Events, Simulator
from distft.data.sources.synthetic.shop import Shop, build_shop

VERSION = 1
"""Part of the identity: raised when the same config gives another log."""
_TASK_EVENTS = 500_000
_EVENT_BYTES = 48  # of a row as CSV
_KINDS = pa.array(["view", "cart", "purchase", "search"])


class Synthetic:
    """See ``distft.data.sources.base.Source``."""

    has_clock = True

    def __init__(self, config: Config) -> None:
        self.config = config

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @cached_property
    def shop(self) -> Shop:
        """The planted parameters."""
        return build_shop(self.config)

    @cached_property
    def _simulator(self) -> Simulator:
        return Simulator(self.shop)

    def read_tasks(self) -> list[ReadTask]:
        """Ranges of user blocks, about half a million events each."""
        user_events = self._events_per_user()
        num_blocks = -(-self.config.num_users // BLOCK_USERS)
        step = max(1, int(_TASK_EVENTS / (user_events * BLOCK_USERS)))
        tasks = []
        for number, first in enumerate(range(0, num_blocks, step)):
            end = min(first + step, num_blocks)
            users = min(end * BLOCK_USERS, self.config.num_users) - first * BLOCK_USERS
            num_bytes = int(users * user_events * _EVENT_BYTES)
            tasks.append(ReadTask(f"synthetic/part-{number:05d}", num_bytes, {"first": first, "end": end}))
        return tasks

    def read(self, task: ReadTask) -> Iterator[EventBatch]:
        """One batch for every block of users; none of its rows is rejected."""
        num_rows = 0
        for block in range(task.position["first"], task.position["end"]):
            events = self._simulator.block(block)
            yield EventBatch(self._table(events, num_rows), rejected_schema().empty_table())
            num_rows += len(events.kind_E)

    def identity(self) -> dict[str, Any]:
        """Config and version: they determine every byte."""
        return {"version": VERSION, **self.config.model_dump(mode="json", exclude_none=True)}

    def items(self) -> FeatureTable:
        """Category, brand, price and title."""
        return self.shop.features()

    def users(self) -> None:
        """A user's type is hidden."""

    def oracle(self) -> Oracle:
        """The exact posterior of the planted parameters."""
        return ShopOracle(self.shop)

    def _events_per_user(self) -> float:
        """Their mean, without drawing any."""
        config = self.config
        sessions = float(self.shop.sessions_S @ np.arange(config.max_sessions + 1))
        views = float(self.shop.views_V @ np.arange(config.max_views + 1))
        return sessions * (views + config.search_share + config.cart_share + config.purchase_share)

    @cached_property
    def _item_ids(self) -> pa.Array:
        return pa.array(self.shop.item_ids())

    @cached_property
    def _words(self) -> pa.Array:
        return pa.array(self.shop.words)

    def _table(self, events: Events, num_rows_before: int) -> pa.Table:
        size = len(events.kind_E)
        first_user = int(events.user_E[0])
        user_ids = pa.array([f"u{user:08d}" for user in range(first_user, int(events.user_E[-1]) + 1)])
        bought = events.kind_E != PURCHASE
        price = self.shop.price_N[events.item_E].astype(np.float32)
        columns = [
            pa.array(np.arange(num_rows_before + 1, num_rows_before + size + 1)),
            user_ids.take(pa.array(events.user_E - first_user)),
            self._item_ids.take(pa.array(events.item_E, mask=events.item_E == NOTHING)),
            pa.DictionaryArray.from_arrays(pa.array(events.kind_E), _KINDS),
            pa.array(events.time_ms_E),
            self._queries(events),
            pa.array(price, mask=bought),
            pa.array(np.ones(size, np.float32), mask=bought),
        ]
        return pa.Table.from_arrays(columns, schema=event_schema())

    def _queries(self, events: Events) -> pa.Array:
        searches = np.flatnonzero(events.word_E2[:, 0] != NOTHING)
        first, second = (self._words.take(pa.array(word, mask=word == NOTHING)) for word in events.word_E2[searches].T)
        texts = pc.binary_join_element_wise(first, second, " ", null_handling="skip")
        place = np.full(len(events.kind_E), NOTHING)
        place[searches] = np.arange(len(searches))
        return texts.take(pa.array(place, mask=place == NOTHING))
