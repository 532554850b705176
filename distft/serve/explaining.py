"""Why an item was recommended: its score again, with each event of the history left out in turn.

Enters: a ranker, one history, and the items that it was answered with. Leaves: for each item the events that moved its
score most. Surprising choice: nothing is read from attention or gradients. An effect is the difference of two scores
that the model gives, so that whoever asks again without the event finds that very number.

Shape legend: E events, X explained events, K items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distft.data import ragged
from distft.data.users import Users
from distft.ranking import Ranker
from distft.schema import Histories

EXPLAINED_EVENTS = 100
"""Only so many, the latest, are left out in turn: each costs a pass over the history."""
REASONS = 3
"""Events that are told of an item."""
ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Reason:
    """An event, by its place in the history, and by how much the item's score is higher for it (lower: below 0)."""

    place: int
    effect: float


def reasons(ranker: Ranker, history: Histories, row_K: NDArray[np.int64], users: Users | None) -> list[list[Reason]]:
    """The events that moved the score of each item most, the strongest first; ``history`` has one row.

    Without an event, an older one comes into a window of ``max_history`` events, as it would have without it.
    """
    effect_XK, first = effects(ranker, history, row_K, users)
    told: list[list[Reason]] = []
    for effect_X in effect_XK.T:
        strongest = np.argsort(-np.abs(effect_X), kind="stable")[:REASONS]
        told.append([Reason(first + int(x), float(effect_X[x])) for x in strongest])
    return told


def effects(
    ranker: Ranker, history: Histories, row_K: NDArray[np.int64], users: Users | None
) -> tuple[NDArray[np.float64], int]:
    """(effect_XK of each explained event on each item's score, the place of the first of these events)."""
    num_events = len(history.item_row)
    first = num_events - min(num_events, EXPLAINED_EVENTS, ranker.max_history)
    all_E = np.arange(num_events)
    # The whole history stands in every batch, because a sum's last bits depend on what is computed beside it.
    s_parts = []
    for start in range(first, num_events, ROWS_AT_ONCE):
        left_out = range(start, min(start + ROWS_AT_ONCE, num_events))
        kept = [all_E, *(np.delete(all_E, place) for place in left_out)]
        kept = [events[-ranker.max_history :] for events in kept]
        lengths = np.array([len(events) for events in kept], np.int64)
        user_row = np.full(len(kept), 0 if users is not None else history.user_row[0], np.int32)
        rows = ragged.gather_events(history, np.concatenate(kept), lengths, user_row)
        s_BK = ranker.scores_of_items(rows, row_K, users).double()
        s_parts.append(s_BK[:1] - s_BK[1:])
    return torch.cat(s_parts).numpy(), first
