"""What prepare drops from a log: duplicates, cancelled purchases, repeats, and users and items with too few events.

Enters: the columns of sorted events. Leaves: masks. Pure functions on arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from distft.data.partition import NONE, Partition

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pairs = tuple[NDArray[np.int32], NDArray[np.int32]]

LEFT_OUT = "left_out"
DUPLICATE = "duplicate"
CANCELLED = "cancelled"
REPEATED = "repeated"
UNLABELLED = "no_value"
K_CORE_USER = "k_core_user"
K_CORE_ITEM = "k_core_item"


def first_of_duplicates(events: Partition) -> NDArray[np.bool_]:
    """True for every event but those that agree with an earlier one in all fields.

    Without a clock the order is all that tells two events apart, so none is a duplicate.
    """
    keep = np.ones(len(events), np.bool_)
    same = (np.diff(events.user) == 0) & (np.diff(events.time_ms) == 0) & (events.time_ms[1:] != NONE)
    crowded = np.flatnonzero(np.concatenate([[False], same]) | np.concatenate([same, [False]]))
    if len(crowded):
        frame = pl.DataFrame({name: values[crowded] for name, values in _fields(events).items()})
        keep[crowded] = frame.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    return keep


def _fields(events: Partition) -> dict[str, NDArray[Any]]:
    """Everything that tells two events apart; numbers as their bits, so that a missing one equals a missing one."""
    return {
        "user": events.user,
        "time_ms": events.time_ms,
        "item": events.item,
        "event": events.event,
        "query": events.query,
        "value": events.value.view(np.int32),
        "quantity": events.quantity.view(np.int32),
    }


def repeated(events: Partition, window_ms: float) -> NDArray[np.bool_]:
    """True for the events that follow an equal one, their times apart, after at most ``window_ms``.

    The one before may itself be a repeat: of a page that reloads every few seconds the first view stays. Events
    without a time repeat nothing.
    """
    fields = _fields(events)
    others = [name for name in fields if name != "time_ms"]
    since = pl.DataFrame(fields).select((pl.col("time_ms") - pl.col("time_ms").shift(1)).over(others)).to_series()
    return np.asarray((since <= window_ms).fill_null(False).to_numpy() & (events.time_ms != NONE))


def cancelled(events: Partition) -> NDArray[np.bool_]:
    """True for the events that a later cancellation undoes: each the latest one left of its user, item and type.

    Cancellations themselves (negative quantity) are False; the caller takes them out.
    """
    undone = np.zeros(len(events), np.bool_)
    negative = events.quantity < 0
    if not negative.any():
        return undone
    number = (events.user.astype(np.int64) * (len(events.item_ids) + 1) + events.item + 1) * 128 + events.event
    standing: dict[int, list[int]] = {}
    for place in np.flatnonzero(np.isin(number, number[negative])).tolist():
        left = standing.setdefault(int(number[place]), [])
        if not negative[place]:
            left.append(place)
        elif left:
            undone[left.pop()] = True
    return undone


@dataclass(frozen=True, eq=False)
class KCore:
    """Users and items that stay, and how many events fell for the user's sake and for the item's."""

    users: NDArray[np.bool_]
    items: NDArray[np.bool_]
    dropped_for_user: int = 0
    dropped_for_item: int = 0


def k_core(pairs: Sequence[Pairs], num: tuple[int, int], minimum: tuple[int, int]) -> KCore:
    """The largest set of users and items in which each has at least its ``minimum`` (user, item) of events.

    ``pairs``: user and item of every event, in any number of pieces. ``num``: users and items in all; those without
    an event stay. Events without an item count for their user. Users are dropped first in each round, until nothing
    changes. What falls is taken off the counts, so that a round only looks the events over and copies none.
    """
    users, items = np.ones(num[0], np.bool_), np.ones(num[1] + 1, np.bool_)  # the last place is that of NONE
    of_user, of_item = np.zeros(num[0], np.int64), np.zeros(num[1] + 1, np.int64)
    for user, item in pairs:
        of_user += np.bincount(user, minlength=num[0])
        of_item += np.bincount(np.where(item == NONE, num[1], item), minlength=num[1] + 1)
    dropped_for_user = dropped_for_item = 0
    while True:
        few = users & (of_user > 0) & (of_user < minimum[0])
        if few.any():
            for user, item in pairs:
                falls = few[user] & items[item]
                dropped_for_user += int(falls.sum())
                of_item -= np.bincount(np.where(item[falls] == NONE, num[1], item[falls]), minlength=num[1] + 1)
            users, of_user = users & ~few, np.where(few, 0, of_user)
        few = items & (of_item > 0) & (of_item < minimum[1])
        few[-1] = False
        if not few.any():
            return KCore(users, items[:-1], dropped_for_user, dropped_for_item)
        for user, item in pairs:
            falls = few[item] & users[user]
            dropped_for_item += int(falls.sum())
            of_user -= np.bincount(user[falls], minlength=num[0])
        items, of_item = items & ~few, np.where(few, 0, of_item)
