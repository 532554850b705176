"""Which events train, which are validated and tested, and what a model may see of each target.

Enters: sorted events of some users and the split of the job. Leaves: the part of every event, and for every target
the slice of events that is its history. Pure functions on arrays.

``part``: TRAIN, VALID or TEST. Leave-one-out and time cut each user's sequence into three runs; random gives parts
to targets one by one. Statistics are taken of TRAIN alone, and an item has a row if an event before TEST holds it.

Surprising choice: with leave-one-out the context events after the validation target belong to no training row,
although they are older than the test target: they would tell of the purchase that comes next.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np

from distft.data.hashing import hash_ids, key, keyed, uniform
from distft.data.partition import Partition
from distft.data.ragged import offsets_of
from distft.schema import Histories
from distft.sections.data import ByTime, LeaveOneOut, Random

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64 = NDArray[np.int64]
    Mask = NDArray[np.bool_]

TRAIN, VALID, TEST = 0, 1, 2
DAY_MS = 86_400_000
MIN_TARGETS = 3
"""Targets that a user needs for leave-one-out: one each to train, validate and test."""


@dataclass(frozen=True)
class Plan:
    """The split with all that it takes from the whole log."""

    by: str
    seed: int = 0
    valid_share: float = 0.0
    test_share: float = 0.0
    valid_start_ms: int = 0
    test_start_ms: int = 0
    ties: str = "fail"

    @property
    def leak_checked(self) -> bool:
        """False for the random split, whose histories are no past."""
        return self.by != "random"


def plan_split(split: LeaveOneOut | ByTime | Random, seed: int, last_ms: int) -> Plan:
    """The plan for a log whose last event is at ``last_ms``. A window ends with its last event and is half open."""
    if isinstance(split, ByTime):
        test_start = last_ms - round(split.test_days * DAY_MS) + 1
        valid_start = test_start - round(split.valid_days * DAY_MS)
        return Plan(split.by, valid_start_ms=valid_start, test_start_ms=test_start)
    if isinstance(split, Random):
        return Plan(split.by, seed, split.valid_share, split.test_share)
    return Plan(split.by, ties=split.ties)


def parts(events: Partition, is_target: Mask, plan: Plan) -> NDArray[np.int8]:
    """TRAIN, VALID or TEST for every event."""
    if plan.by == "time":
        return time_parts(events.time_ms, plan)
    if plan.by == "random":
        return _random_parts(events, is_target, plan)
    return leave_one_out_parts(events.user_offsets, is_target)


def time_parts(time_ms: Int64, plan: Plan) -> NDArray[np.int8]:
    """The window that each time falls into."""
    return (time_ms >= plan.valid_start_ms).astype(np.int8) + (time_ms >= plan.test_start_ms).astype(np.int8)


def leave_one_out_parts(user_offsets: Int64, is_target: Mask) -> NDArray[np.int8]:
    """From each user's last target on: TEST; from the one before it: VALID; all before: TRAIN."""
    place = np.flatnonzero(is_target)
    first = np.searchsorted(place, user_offsets)
    count = np.diff(first)
    ends = first[1:][count >= MIN_TARGETS]
    valid, test = place[ends - 2], place[ends - 1]
    step = np.zeros(len(is_target) + 1, np.int8)
    step[valid] += 1
    step[test] += 1
    step[user_offsets[1:][count >= MIN_TARGETS]] -= 2
    return np.cumsum(step[:-1], dtype=np.int8)


def _random_parts(events: Partition, is_target: Mask, plan: Plan) -> NDArray[np.int8]:
    """By a hash of (seed, user, place in the user's sequence); context events train."""
    offsets = events.user_offsets
    place = np.arange(len(events)) - offsets[events.user]
    user = keyed(key(plan.seed), hash_ids(events.user_ids.tolist()))[events.user]
    draw = uniform(keyed(key(plan.seed, 1), user + place.astype(np.uint64)))
    part = np.zeros(len(events), np.int8)
    part[draw < plan.valid_share + plan.test_share] = VALID
    part[draw < plan.test_share] = TEST
    part[~is_target] = TRAIN
    return part


@dataclass(frozen=True, eq=False)
class TargetRows:
    """Targets and their histories: target i is event ``target[i]``, after the events ``starts[i]:ends[i]``.

    ``in_train``: these count the events of TRAIN alone (random split), not all.
    """

    target: Int64
    starts: Int64
    ends: Int64
    in_train: bool = False


def target_rows(
    events: Partition, part: NDArray[np.int8], is_target: Mask, plan: Plan, wanted: int, max_context: int
) -> TargetRows:
    """The rows of VALID or TEST (``wanted``), in the order of their targets."""
    target = np.flatnonzero(is_target & (part == wanted))
    offsets = events.user_offsets
    user = events.user[target]
    if plan.by == "random":
        in_train = offsets_of(np.bincount(events.user[part == TRAIN], minlength=len(events.user_ids)))
        starts, ends = in_train[user], in_train[user + 1]
        return TargetRows(target, np.maximum(starts, ends - max_context), ends, in_train=True)
    ends = _first_of_moment(events)[target] if plan.by == "time" else target
    return TargetRows(target, np.maximum(offsets[user], ends - max_context), ends)


def _first_of_moment(events: Partition) -> Int64:
    """For every event the first one of the same user and time: where what is strictly earlier ends."""
    fresh = np.ones(len(events), np.bool_)
    fresh[1:] = (np.diff(events.user) != 0) | (np.diff(events.time_ms) != 0)
    return np.maximum.accumulate(np.where(fresh, np.arange(len(events)), 0))


@dataclass(frozen=True)
class Leaks:
    """How many rows show their target, of how many, and one of them in words."""

    rows: int
    leaking: int
    example: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return dict(vars(self))


def find_leaks(histories: Histories, user_ids: NDArray[np.object_], target_time_ms: Int64, ties: str) -> Leaks:
    """Rows whose history holds an event that is not older than the target, as the rows are written.

    With ``ties`` "ordered", the order of the log settles what shares the target's time. Rows without times (-1) hold
    what stands before their target by construction and pass.
    """
    lengths = histories.lengths
    filled = lengths > 0
    latest = np.full(len(histories), -2, np.int64)
    if filled.any():
        latest[filled] = np.maximum.reduceat(histories.time_ms, histories.offsets[:-1][filled])
    bad = latest > target_time_ms if ties == "ordered" else latest >= target_time_ms
    bad &= filled & (target_time_ms >= 0)
    example = ""
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        moment = datetime.fromtimestamp(int(target_time_ms[row]) / 1000, tz=timezone.utc)
        example = f"user {user_ids[row]} at {moment:%Y-%m-%d %H:%M:%S}"
    return Leaks(len(histories), int(bad.sum()), example)
