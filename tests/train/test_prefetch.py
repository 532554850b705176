"""Reading ahead: the same batches in the same order, one step early, and errors where they belong."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from distft.schema import Batch
from distft.train.prefetch import Prefetch
from tests.train.ranks import toy_batch

CPU = torch.device("cpu")


def read(epoch: int, step: int) -> list[Batch]:
    return [toy_batch(2, 10 * epoch + step)]


def test_gives_what_the_function_gives_also_from_the_middle() -> None:
    prefetch = Prefetch(read, 3, 2, CPU)
    for epoch, step in [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 0)]:
        (found,), (expected,) = prefetch.batches(epoch, step), read(epoch, step)
        assert torch.equal(found.item_BL, expected.item_BL)
    prefetch.close()


def test_reads_one_step_ahead_in_a_thread_and_nothing_after_the_last() -> None:
    calls: list[tuple[int, int, str]] = []
    read_second = threading.Event()

    def spied(epoch: int, step: int) -> list[Batch]:
        calls.append((epoch, step, threading.current_thread().name))
        if (epoch, step) == (0, 1):
            read_second.set()
        return []

    prefetch = Prefetch(spied, 2, 1, CPU)
    prefetch.batches(0, 0)
    assert read_second.wait(5), "the second step is read without being asked for"
    prefetch.batches(0, 1)
    prefetch.close()
    assert [call[:2] for call in calls] == [(0, 0), (0, 1)]
    assert all(name.startswith("prefetch") for *_, name in calls)


def test_an_error_is_raised_at_its_step() -> None:
    def failing(epoch: int, step: int) -> list[Batch]:
        if step == 1:
            raise OSError("the disk is gone")
        return []

    prefetch = Prefetch(failing, 3, 1, CPU)
    assert prefetch.batches(0, 0) == []
    with pytest.raises(OSError, match="the disk is gone"):
        prefetch.batches(0, 1)
    prefetch.close()


def test_the_wait_is_only_for_what_is_not_read_yet() -> None:
    def slow(epoch: int, step: int) -> list[Batch]:
        time.sleep(0.1)
        return []

    prefetch: Any = Prefetch(slow, 9, 1, CPU)
    prefetch.batches(0, 0)
    time.sleep(0.2)  # the step computes
    started = time.perf_counter()
    prefetch.batches(0, 1)
    assert time.perf_counter() - started < 0.05
    prefetch.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
