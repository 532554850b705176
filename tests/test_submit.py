"""What a client of a cluster is told before anything is sent. Submitting itself is proved in tests/cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distft.errors import UsageError
from distft.jobfile import parse_job
from distft.serve.server import free_port
from distft.submit import Jobs, Submitted, _Log, check_portable, exit_code, words_of

JOB = """
name: mine
storage: {storage}
data:
  events: [{{source: files, path: {path}, columns: {{user_id: u, item_id: path, timestamp: t}}, event: purchase}}]
  items: {{path: {items}, columns: {{item_id: i}}}}
"""


def job(storage: str = "s3://shop/runs", path: str = "/logs/*.csv", items: str = "s3://shop/items.csv") -> Any:
    return parse_job(JOB.format(storage=storage, path=path, items=items), "mine.yaml")


def test_a_job_of_whole_paths_and_uris_can_be_sent() -> None:
    check_portable(job())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"storage": "runs/mine"}, ["runs/mine", "--storage"]),
        (
            {"path": "data/x.csv", "items": "items.csv"},
            ["data.events.0.path: data/x.csv", "data.items.path: items.csv"],
        ),
    ],
)
def test_paths_of_this_machine_are_named(changes: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        check_portable(job(**changes))
    assert all(word in str(caught.value) for word in words)


def test_a_job_file_is_named_as_the_copy_has_it(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    inside = str(tmp_path / "jobs" / "a.yaml")
    assert words_of(inside, tmp_path, ["seed=2"], "/s") == ["jobs/a.yaml", "--set", "seed=2", "--storage", "/s"]
    with pytest.raises(UsageError, match="not below"):
        words_of(inside, tmp_path / "jobs" / "other", [], None)


def test_a_cluster_that_is_not_named_or_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(UsageError, match="--address"):
        Jobs()
    with pytest.raises(UsageError, match="does not answer"):
        Jobs(f"127.0.0.1:{free_port('127.0.0.1')}")
    with pytest.raises(UsageError, match="not the address of a dashboard"):
        Jobs("ray://127.0.0.1:10001")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 3), ("STOPPED", -15, 130), ("FAILED", -9, 3)],
)
def test_a_command_that_waited_ends_as_the_job_did(status: str, code: int | None, expected: int) -> None:
    assert exit_code(Submitted("mine-1", "mine", "/s", status, code, 0, "")) == expected


def test_a_log_that_is_read_again_is_written_once() -> None:
    written: list[str] = []
    log = _Log(written.append)
    for parts in (["one\n", "tw"], ["one\ntwo\n", "three\n"]):
        log.seen = 0
        for part in parts:
            log.hear(part)
    assert "".join(written) == "one\ntwo\nthree\n"
