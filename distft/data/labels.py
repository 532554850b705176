"""Labels of target events, 0 or 1, by the rule of the job (``data.label``): by their value, or by what came after.

Enters: sorted, cleaned events. Leaves: a label for each target event, which the shards hold as its value; all other
events keep theirs. Surprising choice: a label by what came after is not shown in histories. A page viewed twice before
it was bought would tell the second view's label by the first's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distft.sections.data import Label

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from distft.data.partition import Partition

    Mask = NDArray[np.bool_]


def unlabelled(events: Partition, is_target: Mask, label: Label | None) -> Mask:
    """Target events that have no value although their label is told by it."""
    if label is None or label.value_at_least is None:
        return np.zeros(len(events), np.bool_)
    return np.asarray(is_target & np.isnan(events.value))


def labels(events: Partition, label: Label, code: int) -> NDArray[np.float32]:
    """What the label of each event is if it is a target; ``code``: that of the event that ``label`` waits for."""
    if label.value_at_least is None:
        return _followed(events, code, label.within_ms).astype(np.float32)
    return (events.value >= np.float32(label.value_at_least)).astype(np.float32)


def _followed(events: Partition, code: int, within_ms: float) -> Mask:
    """Whether the same user has an event ``code`` with the same item later in the log, at most ``within_ms`` later."""
    pair = events.user.astype(np.int64) * (len(events.item_ids) + 1) + events.item + 1
    order = np.argsort(pair, kind="stable")  # within a pair the order of the log stays
    size = len(order)
    coming = np.where(events.event[order] == code, np.arange(size), size)
    following = np.append(np.minimum.accumulate(coming[::-1])[::-1], size)[1:]  # strictly after, of any pair
    there = following < size
    next_ = order[np.where(there, following, 0)]
    there &= (pair[next_] == pair[order]) & (events.time_ms[next_] - events.time_ms[order] <= within_ms)
    found = np.zeros(size, np.bool_)
    found[order] = there
    return found
