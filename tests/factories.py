"""Small real objects for tests: catalogs, histories, batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from distft.data.collate import Side
from distft.data.users import Users
from distft.schema import Catalog, Feature, Histories, UserFeature

EVENT_NAMES = ("view", "purchase", "search")
VIEW, PURCHASE, SEARCH = 1, 2, 3


def catalog(num_items: int = 40, features: bool = True, clock: bool = True, tokens: int = 12) -> Catalog:
    """A catalog with a category, one-hot tags and a price, whose reserved rows are empty."""
    rng = np.random.default_rng(0)
    codes = np.concatenate([[0, 1], rng.integers(2, 7, num_items - 2)]).astype(np.int32)
    values = np.concatenate([[0, 0], rng.normal(size=num_items - 2)]).astype(np.float32)
    tags = np.where(rng.random((num_items, 3)) < 0.5, rng.integers(2, 5, (num_items, 3)), 0).astype(np.int32)
    tags[0] = 0
    all_ = (
        Feature("category", codes=codes, size=7),
        Feature("tags", codes=tags, size=5),
        Feature("price", values=values),
    )
    return Catalog(num_items, len(EVENT_NAMES) + 1, tokens, clock, all_ if features else ())


def told_catalog() -> Catalog:
    """The catalog of a shop that knows its users and the labels of their purchases; ``told_side`` goes with it."""
    users = (UserFeature("gender", 4), UserFeature("city", 5), UserFeature("age"))
    return replace(catalog(), user_features=users, has_labels=True)


def told_side(num_users: int = 4) -> Side:
    """What is known of the users of ``told_catalog``."""
    rng = np.random.default_rng(5)
    codes = np.stack([rng.integers(0, 4, num_users + 1), rng.integers(0, 5, num_users + 1)], 1)
    users = Users(codes.astype(np.int64), rng.normal(size=(num_users + 1, 1)).astype(np.float32))
    return Side(users, np.array([PURCHASE], np.int8))


def histories(lengths: list[int], num_items: int = 40, seed: int = 0, tokens: int = 12) -> Histories:
    """Random sequences of views, purchases and searches; searches have a query and no item."""
    rng = np.random.default_rng(seed)
    total = int(np.sum(lengths))
    event = rng.choice([VIEW, PURCHASE, SEARCH], size=total, p=[0.5, 0.4, 0.1]).astype(np.int8)
    searched = event == SEARCH
    item_row = np.where(searched, 0, rng.integers(2, num_items, total)).astype(np.int32)
    query_offsets = np.concatenate([[0], np.cumsum(np.where(searched, rng.integers(1, 4, total), 0))])
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_row=item_row,
        event=event,
        time_ms=np.cumsum(rng.integers(1, 10**7, total)).astype(np.int64),
        query_offsets=query_offsets.astype(np.int64),
        query_tokens=rng.integers(1, tokens, int(query_offsets[-1])).astype(np.int32),
        user_row=np.arange(len(lengths), dtype=np.int32),
        value=rng.normal(size=total).astype(np.float32),
    )
