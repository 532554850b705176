"""Which rank is blamed and for what, from real errors as Ray hands them to its controller."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from distft.errors import ArtefactError, NotFiniteError, StalledError, TrainingError
from distft.storage import Storage, not_written
from distft.train import failure
from distft.train.failure import Failure, cause_of, first_failing

GONE = RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:17777")
DIED = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
FULL = not_written("runs/a", OSError(errno.ENOSPC, "No space left on device"))


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (GONE, None),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), None),
        (DIED, failure.KILLED),
        (WorkerHealthCheckFailedError("", OutOfMemoryError("killed")), failure.MEMORY),
        (MemoryError(), failure.MEMORY),
        (FULL, failure.DISK),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), failure.DISK),
        (NotFiniteError("The loss of step 4 is nan"), failure.NOT_FINITE),
        (StalledError("Rank 1 made no progress"), failure.STALL),
        (ArtefactError("train/00001.parquet has SHA-256 1"), failure.DAMAGED),
        (ValueError("no"), failure.EXCEPTION),
        (RuntimeError("shapes cannot be multiplied"), failure.EXCEPTION),
    ],
)
def test_an_error_has_a_cause_or_is_the_consequence_of_one(error, cause):
    assert cause_of(error) == cause


def test_a_rank_whose_peer_went_is_never_the_first():
    assert first_failing({0: GONE, 1: DIED, 2: GONE}) == 1
    assert first_failing({0: GONE, 1: GONE}) == 0
    assert first_failing({0: DIED, 3: FULL}) == 3, "what says why comes before what only ended"


def test_a_run_ends_with_its_own_error_and_all_that_is_known(tmp_path: Path):
    folder = Storage(tmp_path)
    first = Failure(failure.KILLED, "Rank 1 was killed", 1, 2, reached=40)
    second = Failure(failure.DISK, "Rank 0 failed: the disk is full", 0, 2)
    failure.write_failures(folder, [first, second])
    raised = failure.as_error(folder, WorkerGroupError("", {0: FULL, 1: GONE}), "logs")
    assert raised is FULL
    assert raised.details and raised.details["cause"] == "disk full"
    assert [one["what"] for one in raised.details["before"]] == ["Rank 1 was killed"]
    failure.forget(folder)
    assert folder.list() == []


def test_a_group_that_never_started_is_told_of_as_well(tmp_path: Path):
    raised = failure.as_error(Storage(tmp_path), RuntimeError("no room"), "logs")
    assert type(raised) is TrainingError
    assert "no room" in str(raised) and "logs" in str(raised)
    assert raised.details and raised.details["cause"] == "not started"


def test_what_all_ranks_meet_alike_names_no_rank(tmp_path: Path):
    raised = failure.met_by_all(Storage(tmp_path), NotFiniteError("The loss of step 4 is nan"), 2)
    assert raised.details and raised.details["rank"] is None and raised.details["cause"] == "not finite"


def test_a_failure_that_could_not_be_written_down_is_told_all_the_same(tmp_path: Path):
    raised = failure.as_error(Storage(tmp_path), WorkerGroupError("", {0: GONE, 1: FULL}), "logs")
    assert raised is FULL
    assert raised.details and (raised.details["cause"], raised.details["rank"]) == ("disk full", 1)
    assert raised.details["followed"] == (0,)
