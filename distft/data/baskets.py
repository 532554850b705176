"""Baskets: the events of one user at one time, such as the lines of an invoice.

Enters: ragged ``Histories``. Leaves: for each event the one of the next basket that its position predicts. A test hides
all of its target's basket, so a model that trained on the order of an invoice's lines learnt what nobody asks of it:
that what was just bought is not bought again. Surprising choice: of a basket of n lines before one of m, line i
predicts line ⌊i · m / n⌋, so that a basket is predicted as a whole as often as it has a predecessor, without more than
one target a position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distft.schema import Histories


def next_basket(histories: Histories) -> NDArray[np.int64]:
    """Index of the event that each event's position predicts, int64[events]; -1 in a history's last basket."""
    num_events = len(histories.item_row)
    if not num_events:
        return np.zeros(0, np.int64)
    begins = np.zeros(num_events, bool)
    begins[histories.offsets[:-1][histories.lengths > 0]] = True
    first_of_row = begins.copy()
    begins[1:] |= np.diff(histories.time_ms) != 0
    first = np.flatnonzero(begins)
    size = np.diff(first, append=num_events)
    has_next = np.append(~first_of_row[first[1:]], False)
    following_first, following_size = np.append(first[1:], 0), np.append(size[1:], 0)
    basket = np.repeat(np.arange(len(first)), size)
    place = np.arange(num_events) - first[basket]
    predicted = following_first[basket] + place * following_size[basket] // size[basket]
    return np.where(has_next[basket], predicted, -1)
