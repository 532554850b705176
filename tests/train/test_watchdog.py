"""The verdict on who holds a training up, without processes and without waiting: the clock is a number."""

from __future__ import annotations

import pytest

from distft.train.position import Sighting
from distft.train.watchdog import Watchdog

COLLECTIVE = (
    "/site/distft/train/step.py:90 in train_step",
    "/site/torch/distributed/distributed_c10d.py:3 in all_reduce",
)
BUSY = ("/site/distft/train/step.py:95 in train_step", "/site/distft/losses/softmax/loss.py:12 in forward")


def sighting(marks: int, stack: tuple[str, ...] = (), taken: int = 1) -> Sighting:
    return Sighting(marks, "forward pass", 7, taken=taken, stack=stack)


def watched(num_ranks: int = 3, timeout_s: float = 20) -> Watchdog:
    watchdog = Watchdog(timeout_s)
    watchdog.start(range(num_ranks), 100)
    return watchdog


def report(
    watchdog: Watchdog, now_s: float, marks: list[int], stacks: dict[int, tuple[str, ...]] | None = None
) -> None:
    for rank, count in enumerate(marks):
        watchdog.asked(rank, now_s)
        watchdog.saw(rank, sighting(count, (stacks or {}).get(rank, ())), now_s)


def look_until(watchdog: Watchdog, start_s: int, end_s: int) -> None:
    for now_s in range(start_s, end_s):
        assert watchdog.look(now_s) is None


def test_one_rank_that_goes_on_is_enough():
    watchdog = watched()
    for now_s in range(100, 200, 5):
        report(watchdog, now_s, [now_s, 3, 3])
        assert watchdog.look(now_s) is None


def test_the_rank_with_the_fewest_marks_is_named():
    watchdog = watched()
    for now_s in range(101, 121, 4):
        report(watchdog, now_s, [8, 7, 8])
        assert watchdog.look(now_s) is None
    report(watchdog, 121.5, [8, 7, 8])
    stall = watchdog.look(121.5)
    assert stall and (stall.rank, stall.ranks, stall.silent) == (1, (1,), False)
    assert stall.waited_s == pytest.approx(20.5) and stall.sighting and stall.sighting.step == 7


def test_a_rank_that_owes_an_answer_is_to_blame_whatever_the_others_marks():
    watchdog = watched()
    report(watchdog, 101, [5, 9, 5])
    watchdog.asked(1, 102)
    for now_s in range(102, 121):
        assert watchdog.look(now_s) is None
        watchdog.saw(0, sighting(5), now_s)
        watchdog.saw(2, sighting(5), now_s)
    stall = watchdog.look(121)
    assert stall and stall.rank == 1 and stall.silent
    assert stall.sighting and stall.sighting.marks == 9, "where it was last seen"


def test_of_ranks_at_the_same_mark_the_one_outside_of_a_collective_is_named():
    watchdog = watched()
    report(watchdog, 101, [5, 5, 5])
    look_until(watchdog, 102, 121)
    report(watchdog, 121, [5, 5, 5], {0: COLLECTIVE, 1: COLLECTIVE, 2: BUSY})
    stall = watchdog.look(121)
    assert stall and stall.ranks == (2,)


def test_a_collective_that_is_stuck_names_all_who_are_in_it():
    watchdog = watched()
    report(watchdog, 101, [5, 5, 5])
    look_until(watchdog, 102, 121)
    report(watchdog, 121, [5, 5, 5], dict.fromkeys(range(3), COLLECTIVE))
    stall = watchdog.look(121)
    assert stall and stall.ranks == (0, 1, 2) and not stall.silent


def test_ranks_that_never_said_anything_are_named_as_well():
    watchdog = watched(2)
    look_until(watchdog, 101, 220)
    stall = watchdog.look(220)
    assert stall and stall.ranks == (0, 1) and stall.sighting is None


def test_a_pause_of_the_observer_counts_against_nobody():
    watchdog = watched()
    report(watchdog, 101, [5, 5, 5])
    assert watchdog.look(102) is None
    assert watchdog.look(1000) is None
    look_until(watchdog, 1001, 1018)
    assert watchdog.look(1025)


def test_stacks_are_asked_for_only_when_it_has_been_quiet_for_a_while():
    watchdog = watched()
    report(watchdog, 101, [5, 5, 5])
    assert not watchdog.suspects(110)
    assert watchdog.suspects(112)


def test_the_start_is_given_more_time_than_a_step():
    watchdog = watched(1)
    watchdog.saw(0, sighting(2, taken=0), 101)
    look_until(watchdog, 102, 221)
    assert watchdog.look(221)
