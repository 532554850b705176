"""Changed copies of training histories: cropped, reordered, masked (CL4SRec; Xie et al., 2022, arXiv:2010.14395).

Enters: training rows with their keys. Leaves: the same rows, some of them changed, as a pure function of each row's
key, so that neither the rank nor the cut of a batch has a part in it. Surprising choice: here the changed history
replaces the row, inputs and targets alike, instead of being held against another one in a contrastive loss; only
masking leaves the targets as they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from distft.data import ragged
from distft.data.hashing import keyed, mix, uniform
from distft.schema import NUM_RESERVED, UNKNOWN, Batch, Histories
from distft.sections.train import Augment

Float64 = NDArray[np.float64]

CROP_SHARE = 0.5
"""A crop keeps at least this share of a history's events."""
REORDER_SHARE = 0.2
"""A stretch that is reordered is at most this share of a history's events, but at least two."""
_CROP, _CROP_LENGTH, _CROP_START, _REORDER, _REORDER_START, _PLACE, _MASK = range(1, 8)


def changed(histories: Histories, rules: Augment) -> Histories:
    """The rows as they are trained on, before they become a batch: cropped and reordered."""
    if rules.crop and len(histories):
        histories = _cropped(histories, rules.crop)
    if rules.reorder and len(histories):
        histories = _reordered(histories, rules.reorder)
    return histories


def mask_items(batch: Batch, share: float) -> None:
    """Makes ``share`` of the real items of a batch's events unknown, in place; targets stay."""
    if not share or not batch.item_BL.numel():
        return
    item_BL = batch.item_BL.numpy()
    place_L = np.arange(item_BL.shape[1], dtype=np.uint64)
    row_B = _hashes(batch.key_B.numpy(), _MASK)
    drawn_BL = uniform(mix(row_B[:, None] ^ mix(place_L)))
    item_BL[(drawn_BL < share) & (item_BL >= NUM_RESERVED)] = UNKNOWN


def _cropped(histories: Histories, share: float) -> Histories:
    """``share`` of the rows cut to a random run of their events, at least two of them."""
    length = histories.lengths
    kept_share = CROP_SHARE + (1 - CROP_SHARE) * _drawn(histories, _CROP_LENGTH)
    kept = np.maximum(np.minimum(length, 2), np.ceil(length * kept_share).astype(np.int64))
    kept = np.where(_drawn(histories, _CROP) < share, kept, length)
    start = histories.offsets[:-1] + np.floor(_drawn(histories, _CROP_START) * (length - kept + 1)).astype(np.int64)
    return replace(ragged.gather(histories, start, start + kept, histories.user_row), key=histories.key)


def _reordered(histories: Histories, share: float) -> Histories:
    """``share`` of the rows with the events of a random stretch in another order; the times stay where they are."""
    length = histories.lengths
    stretch = np.minimum(length, np.maximum(2, np.floor(length * REORDER_SHARE).astype(np.int64)))
    stretch = np.where(_drawn(histories, _REORDER) < share, stretch, 0)
    first = np.floor(_drawn(histories, _REORDER_START) * (length - stretch + 1)).astype(np.int64)
    row = np.repeat(np.arange(len(length)), length)
    place = np.arange(len(row)) - histories.offsets[:-1][row]
    moves = (place >= first[row]) & (place < (first + stretch)[row])
    drawn = uniform(mix(_hashes(histories.key, _PLACE)[row] ^ mix(place.astype(np.uint64))))
    new_place = np.where(moves, first[row] + drawn * stretch[row], place)
    order = np.lexsort((new_place, row))
    moved = ragged.gather_events(histories, order, length, histories.user_row)
    return replace(moved, time_ms=histories.time_ms, key=histories.key)


def _drawn(histories: Histories, purpose: int) -> Float64:
    """A number in [0, 1) for each row."""
    return uniform(_hashes(histories.key, purpose))


def _hashes(key: NDArray[np.int64], purpose: int) -> NDArray[np.uint64]:
    return mix(keyed(purpose, mix(key.view(np.uint64))))
