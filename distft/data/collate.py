"""Rows of events → Batch: the same function when training, evaluating and serving.

Enters: ragged ``Histories``, and what is known beside their events. Leaves: a right-padded ``Batch`` whose positions
start at each history's oldest event that fits. Surprising choice: a time gap is only taken between two events of the
window, never to the one that was cut off, so that a server that sees only the window computes the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from distft.data.baskets import next_basket
from distft.data.users import Users
from distft.schema import NEGATIVE, NO_LABEL, NUM_GAP_BUCKETS, NUM_RESERVED, PAD, POSITIVE, Batch, Histories

if TYPE_CHECKING:
    from distft.data.encode import Encoder
    from distft.storage import Storage


@dataclass(frozen=True)
class Side:
    """Side information of histories: whose they are, and the codes of the events whose value is a label to be seen."""

    users: Users = field(default_factory=Users.none)
    label_codes: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))

    @classmethod
    def of(cls, encoder: Encoder, dataset: Storage | None) -> Side:
        """That of a dataset's users; without a dataset, as when serving, every user is the unknown one."""
        specs = encoder.user_features
        return cls(Users.of_dataset(dataset, specs) if dataset else Users.told(specs, ()), encoder.label_codes)


NOTHING = Side()


def history_batch(histories: Histories, max_history: int, has_clock: bool, side: Side = NOTHING) -> Batch:
    """The latest ``max_history`` events of every history as inputs, without targets."""
    end = histories.offsets[1:]
    start = np.maximum(histories.offsets[:-1], end - max_history)
    return _pad(histories, start, end, has_clock, side)


def example_batch(
    histories: Histories, max_history: int, has_clock: bool, step_key: int = 0, side: Side = NOTHING
) -> Batch:
    """The events before the last one of each row as inputs; that last one is the only target.

    Where nothing is before it, it is the target of position 0, which is padding.
    """
    end = histories.offsets[1:] - 1
    start = np.maximum(histories.offsets[:-1], end - max_history)
    batch = _pad(histories, start, end, has_clock, side)
    set_targets(batch, histories.item_row[end], histories.value[end] if len(histories.value) else None)
    batch.step_key_B.fill_(step_key)
    return batch


def set_targets(batch: Batch, item_B: NDArray[np.int32], value_B: NDArray[np.float32] | None) -> None:
    """Makes these the targets after each history's last event; PAD is none."""
    rows_B, place_B = torch.arange(len(item_B)), (batch.length_B - 1).clamp(min=0)
    batch.target_BL[rows_B, place_B] = torch.from_numpy(item_B.astype(np.int64))
    if value_B is not None:
        batch.target_value_BL[rows_B, place_B] = torch.from_numpy(value_B.astype(np.float32))


def train_batch(  # noqa: PLR0913  of these a batch is made
    histories: Histories,
    max_history: int,
    has_clock: bool,
    target_codes: NDArray[np.int8],
    step_key: int = 0,
    baskets: bool = False,
    side: Side = NOTHING,
) -> Batch:
    """All events but the last as inputs; each position's target is the event after it, or one of the next basket.

    Only events of the target types on known items are targets; a history of n events gives at most
    min(n - 1, max_history) of them, the latest. ``step_key``: what all rows of an optimiser step share.
    """
    end = np.maximum(histories.offsets[1:] - 1, histories.offsets[:-1])
    start = np.maximum(histories.offsets[:-1], end - max_history)
    batch = _pad(histories, start, end, has_clock, side)
    index_BL, valid_BL = _positions(start, end)
    if len(histories.item_row):
        following_BL = next_basket(histories)[index_BL] if baskets else np.where(valid_BL, index_BL + 1, 0)
        valid_BL &= following_BL >= 0
        item_BL = histories.item_row[following_BL]
        wanted_BL = valid_BL & (item_BL >= NUM_RESERVED) & np.isin(histories.event[following_BL], target_codes)
        batch.target_BL = torch.from_numpy(np.where(wanted_BL, item_BL, PAD).astype(np.int64))
        if len(histories.value):
            value_BL = np.where(wanted_BL, histories.value[following_BL], np.float32(0))
            batch.target_value_BL = torch.from_numpy(value_BL.astype(np.float32))
    batch.step_key_B.fill_(step_key)
    return batch


def _positions(start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(index_BL into the flat events, valid_BL); width is at least 1, so that an empty batch has a position."""
    length_B = end - start
    width = max(1, int(length_B.max(initial=0)))
    index_BL = start[:, None] + np.arange(width)
    valid_BL = np.arange(width) < length_B[:, None]
    return np.where(valid_BL, index_BL, 0), valid_BL


def _pad(histories: Histories, start: NDArray[np.int64], end: NDArray[np.int64], has_clock: bool, side: Side) -> Batch:
    index_BL, valid_BL = _positions(start, end)
    if len(histories.item_row):
        item_BL = np.where(valid_BL, histories.item_row[index_BL], PAD)
        event_BL = np.where(valid_BL, histories.event[index_BL], PAD)
    else:
        item_BL = event_BL = np.zeros(index_BL.shape, np.int64)
    gap_BL = _gaps(histories, index_BL, valid_BL) if has_clock else np.zeros(index_BL.shape, np.int64)
    codes_BK, numbers_BG = side.users.of_rows(histories.user_row)
    return Batch(
        item_BL=torch.from_numpy(item_BL.astype(np.int64)),
        event_BL=torch.from_numpy(event_BL.astype(np.int64)),
        gap_BL=torch.from_numpy(gap_BL),
        query_BLQ=torch.from_numpy(_queries(histories, index_BL, valid_BL)),
        length_B=torch.from_numpy((end - start).astype(np.int64)),
        target_BL=torch.zeros(index_BL.shape, dtype=torch.int64),
        target_value_BL=torch.zeros(index_BL.shape, dtype=torch.float32),
        user_row_B=torch.from_numpy(histories.user_row.astype(np.int64)),
        key_B=torch.from_numpy(histories.key.copy() if len(histories.key) else np.zeros(len(histories), np.int64)),
        step_key_B=torch.zeros(len(histories), dtype=torch.int64),
        label_BL=torch.from_numpy(_labels(histories, index_BL, valid_BL, side.label_codes)),
        user_codes_BK=torch.from_numpy(codes_BK),
        user_numbers_BG=torch.from_numpy(numbers_BG),
    )


def _labels(
    histories: Histories, index_BL: NDArray[np.int64], valid_BL: NDArray[np.bool_], codes: NDArray[np.int8]
) -> NDArray[np.int64]:
    """What is known of each event by its label, where the shop has labels; one that was not told is NaN."""
    if not len(codes) or not len(histories.value):
        return np.full(index_BL.shape, NO_LABEL, np.int64)
    value_BL = histories.value[index_BL]
    told_BL = valid_BL & ~np.isnan(value_BL) & np.isin(histories.event[index_BL], codes)
    return np.where(told_BL, np.where(value_BL >= 0.5, POSITIVE, NEGATIVE), NO_LABEL).astype(np.int64)


def _gaps(histories: Histories, index_BL: NDArray[np.int64], valid_BL: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Codes of the seconds since the event before; 0 for a window's first event and where a time is unknown (< 0)."""
    gap_BL = np.zeros(index_BL.shape, np.int64)
    if len(histories.time_ms):
        time_BL = histories.time_ms[index_BL]
        seconds_BL = np.maximum(np.diff(time_BL, axis=1), 0) / 1000
        bucket_BL = np.minimum(1 + np.floor(np.log2(1 + seconds_BL)).astype(np.int64), NUM_GAP_BUCKETS - 1)
        known_BL = valid_BL[:, 1:] & (time_BL[:, 1:] >= 0) & (time_BL[:, :-1] >= 0)
        gap_BL[:, 1:] = np.where(known_BL, bucket_BL, 0)
    return gap_BL


def _queries(histories: Histories, index_BL: NDArray[np.int64], valid_BL: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Token rows of each event's query, padded to the longest of the batch; [B, L, 0] if no event has one."""
    if not len(histories.item_row):
        return np.zeros((*index_BL.shape, 0), np.int64)
    first_BL = histories.query_offsets[index_BL]
    count_BL = np.where(valid_BL, histories.query_offsets[index_BL + 1] - first_BL, 0)
    width = int(count_BL.max(initial=0))
    position_BLQ = first_BL[..., None] + np.arange(width)
    present_BLQ = np.arange(width) < count_BL[..., None]
    if not width:
        return np.zeros((*index_BL.shape, 0), np.int64)
    return np.where(present_BLQ, histories.query_tokens[np.where(present_BLQ, position_BLQ, 0)], PAD).astype(np.int64)
