"""The words that every stage shares: column names, codes, arrow schemas, and the arrays that pass between them.

Shape legend: B rows (histories), L positions, Q query tokens, N items.

Two kinds of identifier never mix: ``*_id`` is the shop's own (a string), ``*_row`` is distft's dense number.
Surprising choice: padding is told by ``event == PAD``, not by ``item == PAD``, because a search is an event
that has a query and no item.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

PAD = 0
UNKNOWN = 1
NUM_RESERVED = 2  # rows before the first real item, category or token

USER_ID = "user_id"
ITEM_ID = "item_id"
EVENT = "event"
TIMESTAMP = "timestamp"
QUERY = "query"
VALUE = "value"
QUANTITY = "quantity"

EVENT_TYPES = ("view", "cart", "favourite", "purchase", "search", "rating", "follow", "comment")
ITEMLESS_EVENTS = frozenset({"search"})

ExcludeSeen = Literal["all", "targets", "none"]
"""Items of a history that are left out: all, those of target events, or none. Each rule includes those after it."""

SPLITS = ("train", "valid", "test")

RANKING_METRICS = ("hr", "ndcg", "mrr", "recall", "map", "coverage", "novelty")
LABEL_METRICS = ("auc", "accuracy", "precision", "recall", "f1", "logloss")
VALUE_METRICS = ("rmse", "mae")
POINTWISE_METRICS = (*LABEL_METRICS, *VALUE_METRICS)
METRIC_PATTERN = re.compile(rf"^(?:(?:{'|'.join(RANKING_METRICS)})@[1-9][0-9]*|{'|'.join(POINTWISE_METRICS)}|loss)$")

NO_LABEL, NEGATIVE, POSITIVE = 0, 1, 2
"""Codes of what is known of an event of the history by ``data.label``."""

NUM_GAP_BUCKETS = 34
"""Codes of the time since the previous event: 0 unknown, then 1 + floor(log2(1 + seconds)), at most 33."""


def lower_is_better(metric: str) -> bool:
    """True for the metrics that an optimum makes small."""
    return metric in ("loss", "logloss", *VALUE_METRICS)


def history_fields() -> list[pa.Field]:
    """Arrow fields of one row's events, in time order: the part that train, valid and test share."""
    import pyarrow as pa

    return [
        pa.field("user_row", pa.int32()),
        pa.field("user_id", pa.string()),
        pa.field("part", pa.int32()),
        pa.field("item_row", pa.list_(pa.int32())),
        pa.field("event", pa.list_(pa.int8())),
        pa.field("time_ms", pa.list_(pa.int64())),
        pa.field("query", pa.list_(pa.list_(pa.int32()))),
        pa.field("value", pa.list_(pa.float32())),
    ]


def train_schema() -> pa.Schema:
    """Arrow schema of ``dataset/train/*.parquet``: one row a user (a part of one above the event limit)."""
    import pyarrow as pa

    return pa.schema(history_fields())


def target_schema() -> pa.Schema:
    """Arrow schema of ``dataset/valid`` and ``dataset/test``: one row a target, with the events before it."""
    import pyarrow as pa

    targets = [
        pa.field("target_item", pa.int32()),
        pa.field("target_event", pa.int8()),
        pa.field("target_time_ms", pa.int64()),
        pa.field("target_value", pa.float32()),
    ]
    return pa.schema(history_fields() + targets)


@dataclass(frozen=True)
class Feature:
    """One input of a model from the items' features, aligned with item rows.

    A category: ``codes`` with ``size`` distinct codes (PAD and UNKNOWN among them), int32[num_items] if it is
    label-encoded, or int32[num_items, M], all of an item's categories and then PAD, if it is one-hot-encoded. PAD
    adds nothing. A number: ``values`` float32[num_items], scaled. Exactly one of the two is set.
    """

    name: str
    codes: NDArray[np.int32] | None = None
    size: int = 0
    values: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class UserFeature:
    """One input of a model from the users' features: a category of ``size`` codes, or a number where size is 0."""

    name: str
    size: int = 0


@dataclass(frozen=True)
class Catalog:
    """What a model must know of the shop to be built: the sizes of its tables and the items' features.

    Counts include the reserved rows (PAD and UNKNOWN); ``num_events`` includes PAD. ``counts``: training targets of
    each item row, int64[num_items]; None where nothing is known of them. ``user_features``: the columns of
    ``Batch.user_codes_BK``, then those of ``user_numbers_BG``. ``has_labels``: ``Batch.label_BL`` tells something.
    ``has_item_table``: a model holds the table of items itself; otherwise it is given rows of it, as it needs them.
    ``target_events``: the codes of the events that are predicted.
    """

    num_items: int
    num_events: int
    num_query_tokens: int
    has_clock: bool
    features: tuple[Feature, ...] = ()
    counts: NDArray[np.int64] | None = None
    user_features: tuple[UserFeature, ...] = ()
    has_labels: bool = False
    has_item_table: bool = True
    target_events: tuple[int, ...] = ()


@dataclass(frozen=True)
class Histories:
    """Event sequences of several users, ragged: row i's events are ``offsets[i]:offsets[i + 1]``.

    ``item_row`` int32, ``event`` int8, ``time_ms`` int64, all [events]. Event j's query tokens are
    ``query_offsets[j]:query_offsets[j + 1]`` of ``query_tokens``. ``user_row`` int32[rows]. ``key`` int64[rows], or
    empty: what is drawn at random for a row is a function of it.
    """

    offsets: NDArray[np.int64]
    item_row: NDArray[np.int32]
    event: NDArray[np.int8]
    time_ms: NDArray[np.int64]
    query_offsets: NDArray[np.int64]
    query_tokens: NDArray[np.int32]
    user_row: NDArray[np.int32]
    value: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    key: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Events of each row, int64[rows]."""
        return np.diff(self.offsets)


@dataclass
class Batch:
    """One micro-batch, right-padded: what every model's ``states`` takes.

    Positions with ``event_BL == PAD`` are padding. ``target_BL`` is the item to be predicted after a position,
    PAD where the position predicts nothing (and everywhere when serving). ``gap_BL``: see NUM_GAP_BUCKETS.
    ``label_BL``: NO_LABEL, NEGATIVE or POSITIVE. ``user_codes_BK`` and ``user_numbers_BG``: see Catalog.

    What a loss draws at random is a function of ``key_B``, a hash of (seed, epoch, user row, window), or of
    ``step_key_B``, one of (seed, epoch, step) that all rows share: never of the rank, nor of how a batch was cut. Both
    are 0 when serving.
    """

    item_BL: torch.Tensor
    event_BL: torch.Tensor
    gap_BL: torch.Tensor
    query_BLQ: torch.Tensor
    length_B: torch.Tensor
    target_BL: torch.Tensor
    target_value_BL: torch.Tensor
    user_row_B: torch.Tensor
    key_B: torch.Tensor
    step_key_B: torch.Tensor
    label_BL: torch.Tensor
    user_codes_BK: torch.Tensor
    user_numbers_BG: torch.Tensor

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor of every field."""
        yield from vars(self).items()

    def to(self, device: Any) -> Batch:
        """The same batch on another device (asynchronously from pinned memory)."""
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors()})
