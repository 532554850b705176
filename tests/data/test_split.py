from __future__ import annotations

import numpy as np
import pytest

from distft.data.partition import NONE, Partition
from distft.data.split import DAY_MS, TEST, VALID, find_leaks, leave_one_out_parts, parts, plan_split, target_rows
from distft.sections.data import ByTime, LeaveOneOut, Random
from tests.data.datasets import histories


def events(times_of_users: list[list[int]]) -> Partition:
    lengths = [len(times) for times in times_of_users]
    size = sum(lengths)
    return Partition(
        user_ids=np.array([f"u{number}" for number in range(len(lengths))], np.object_),
        item_ids=np.array(["i"], np.object_),
        queries=np.zeros(0, np.object_),
        user=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        item=np.zeros(size, np.int32),
        event=np.ones(size, np.int8),
        time_ms=np.array([time for times in times_of_users for time in times], np.int64),
        query=np.full(size, NONE, np.int32),
        value=np.zeros(size, np.float32),
        quantity=np.zeros(size, np.float32),
    )


def test_leave_one_out_takes_the_last_two_targets() -> None:
    offsets = np.array([0, 5, 7, 7, 12])
    is_target = np.array([1, 0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1], np.bool_)
    part = leave_one_out_parts(offsets, is_target)
    assert part.tolist() == [0, 0, 1, 2, 2, 0, 0, 0, 0, 0, 1, 2]


def test_time_windows_end_with_the_last_event() -> None:
    last = 100 * DAY_MS
    log = events(
        [[last - 4 * DAY_MS, last - 2 * DAY_MS, last - 2 * DAY_MS + 1, last - DAY_MS, last - DAY_MS + 1, last]]
    )
    plan = plan_split(ByTime(valid_days=1, test_days=1), 1, last)
    assert parts(log, np.ones(6, np.bool_), plan).tolist() == [0, 0, 1, 1, 2, 2]


def test_by_time_a_history_is_strictly_older() -> None:
    log = events([[1, 5, 5, 5, 9], [5]])
    plan = plan_split(ByTime(valid_days=1 / DAY_MS, test_days=5 / DAY_MS), 1, 9)
    is_target = np.ones(6, np.bool_)
    part = parts(log, is_target, plan)
    rows = target_rows(log, part, is_target, plan, TEST, max_context=1000)
    assert rows.target.tolist() == [1, 2, 3, 4, 5]
    assert rows.starts.tolist() == [0, 0, 0, 0, 5]
    assert rows.ends.tolist() == [1, 1, 1, 4, 5]
    cut = target_rows(log, part, is_target, plan, TEST, max_context=2)
    assert cut.starts.tolist() == [0, 0, 0, 2, 5]


def test_random_parts_follow_the_seed_and_the_shares() -> None:
    log = events([list(range(200)) for _ in range(50)])
    is_target = np.tile([True, False], 5000)
    split = Random(valid_share=0.1, test_share=0.3)
    part = parts(log, is_target, plan_split(split, 1, 200))
    assert not part[~is_target].any()
    assert (part[is_target] == VALID).mean() == pytest.approx(0.1, abs=0.02)
    assert (part[is_target] == TEST).mean() == pytest.approx(0.3, abs=0.02)
    assert (part == parts(log, is_target, plan_split(split, 1, 200))).all()
    assert (part != parts(log, is_target, plan_split(split, 2, 200))).any()


def test_leaks_are_found_in_the_rows_as_written() -> None:
    rows = histories([3, 0, 2])  # times 0, 1, 2 s and 3, 4 s
    names = np.array(["a", "b", "c"], np.object_)
    clean = find_leaks(rows, names, np.array([2001, 0, 4001]), "fail")
    assert (clean.rows, clean.leaking, clean.example) == (3, 0, "")
    tied = find_leaks(rows, names, np.array([2001, 0, 4000]), "fail")
    assert (tied.leaking, tied.example) == (1, "user c at 1970-01-01 00:00:04")
    assert find_leaks(rows, names, np.array([2001, 0, 4000]), "ordered").leaking == 0
    assert find_leaks(rows, names, np.array([1999, 0, 4000]), "ordered").leaking == 1
    assert find_leaks(rows, names, np.full(3, NONE), "fail").leaking == 0


def test_plans_carry_what_the_split_says() -> None:
    assert plan_split(LeaveOneOut(ties="ordered"), 1, 0).ties == "ordered"
    assert not plan_split(Random(), 1, 0).leak_checked
