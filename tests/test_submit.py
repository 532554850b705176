"""What a client of a cluster is told before anything is sent. Submitting itself is proved in tests/cluster."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distft.errors import UsageError
from distft.jobfile import parse_job
from distft.serve.server import free_port
from distft.submit import Jobs, Submitted, _Log, check_portable, exit_code, relative_paths, words_of

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


def test_every_key_that_names_a_folder_is_found_whatever_its_section() -> None:
    found = parse_job(
        JOB.format(storage="s3://shop/runs", path="log/*.csv", items="items.csv")
        + "  vocabulary: {from: base/service}\nfinetune: {from: /base/service}\n"
        + "deploy: {state: base/service, address: http://10.0.0.5:8265, token_file: token}\n"
    )
    assert relative_paths(found) == [
        ("data.events.0.path", "log/*.csv"),
        ("data.items.path", "items.csv"),
        ("data.vocabulary.from", "base/service"),
        ("deploy.state", "base/service"),
        ("deploy.token_file", "token"),
    ]


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


class Endless:
    """The client of a cluster with one job that says something and never ends."""

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        yield "it began\n"
        await asyncio.sleep(60)

    def list_jobs(self) -> list[Any]:
        facts = {"submission_id": "a-1", "metadata": {"distft": "a"}, "status": "RUNNING", "message": ""}
        return [SimpleNamespace(**facts, driver_exit_code=None, start_time=0)]


def test_a_job_is_followed_no_longer_than_was_asked_for() -> None:
    jobs, said = object.__new__(Jobs), list[str]()
    jobs.address, jobs._client = "http://here:8265", Endless()  # type: ignore[assignment]
    began_s = time.monotonic()
    assert jobs.follow("a-1", said.append, 0.5).status == "RUNNING"
    assert said == ["it began\n"] and time.monotonic() - began_s < 10


def test_a_log_that_is_read_again_is_written_once() -> None:
    written: list[str] = []
    log = _Log(written.append)
    for parts in (["one\n", "tw"], ["one\ntwo\n", "three\n"]):
        log.seen = 0
        for part in parts:
            log.hear(part)
    assert "".join(written) == "one\ntwo\nthree\n"


@contextmanager
def dashboard(token: str) -> Iterator[str]:
    """The address of what looks like a cluster's dashboard to Ray's client, and lets nothing but this token in."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["Authorization"] == f"Bearer {token}"
            body = {"/api/version": {"ray_version": "2.60.0", "version": "4"}, "/api/jobs/": []}[self.path]
            text = json.dumps(body).encode()
            self.send_response(200 if allowed else 401)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_another_cluster_is_reached_with_its_own_token_from_within_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the environment names the job's own cluster, by variables that Ray's client would follow."""
    (tmp_path / "token").write_text("theirs\n")
    with dashboard("theirs") as theirs, dashboard("ours") as ours:
        monkeypatch.setenv("RAY_ADDRESS", ours)
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ours)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "ours")
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        assert Jobs(theirs, str(tmp_path / "token")).all() == []
        assert Jobs().address == ours, "the variables are there afterwards"
        with pytest.raises(UsageError, match="does not let in this token"):
            Jobs(theirs)
        with pytest.raises(UsageError, match=r"Write it into .*token"):
            Jobs(ours, str(tmp_path / "token"))


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "cannot be read: No such file"), (" \n", "holds no token"), ("a b\n", "holds more than a token")],
)
def test_a_file_without_a_token_is_told(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "token").write_text(text)
    with pytest.raises(UsageError, match=words):
        Jobs("http://127.0.0.1:1", str(tmp_path / "token"))
