"""The command line as a person meets it: exit codes, one paragraph for a mistake, JSON alone on stdout."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distft import __version__
from distft.cli.main import app
from distft.errors import StorageError
from distft.lock import locked
from distft.storage import Storage

JOB = """\
name: shop
storage: {storage}
data:
  events:
    - source: files
      path: {log}
      columns: {{user_id: user, item_id: item, timestamp: time}}
      event: purchase
"""


def distft(*arguments: object, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distft", *map(str, arguments)]
    nowhere = {**os.environ, "HOME": "/dev/null"}  # as in a container with a user of its own
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env=nowhere)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """A user's mistake: exit code 2, one paragraph on stderr, no trace, nothing on stdout."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    told = done.stderr[done.stderr.index("error ") :]
    assert len(told.strip().splitlines()) == 1
    for word in words:
        assert word in told, told
    assert done.stdout == ""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "shop.yaml"
    path.write_text(JOB.format(storage=tmp_path / "run", log=tmp_path / "log.csv"))
    return path


def test_help_and_check_answer_at_once(job):
    started = time.monotonic()
    shown = distft("--help")
    assert shown.returncode == 0
    for verb in ("check", "prepare", "train", "evaluate", "export", "run", "serve", "data", "schema"):
        assert verb in shown.stdout
    assert time.monotonic() - started < 5, "the figure is a benchmark; this only catches a heavy import"
    assert distft("--version").stdout == f"distft {__version__}\n"
    checked = distft("check", job, "--json")
    assert (checked.returncode, json.loads(checked.stdout)["name"]) == (0, "shop")


def test_an_unknown_verb_or_flag_is_refused():
    assert distft("trian", "x.yaml").returncode == 2
    assert distft("check", "x.yaml", "--froce").returncode == 2


def test_a_missing_log_is_told_before_anything_starts(job):
    done = distft("prepare", job)
    refused(done, "log.csv")
    assert not any(path.name != "run" for path in job.parent.iterdir() if path != job)


def test_a_storage_that_cannot_be_written_is_told(job):
    refused(distft("prepare", job, "--storage", "/proc/nothing"), "/proc/nothing cannot be written", "--storage")
    (job.parent / "file").write_text("")
    refused(distft("prepare", job, "--storage", job.parent / "file"), "cannot be written")


def test_a_place_that_a_shell_left_empty_is_not_the_root(job):
    refused(distft("prepare", job, "--storage", ""), "--storage is ''")
    refused(distft("data", "synth", "jobs/quickstart.yaml", "--out", ""), "--out is ''")
    refused(distft("serve", "~/bundle"), "BUNDLE is '~/bundle'")
    refused(distft("evaluate", job, "--against", ""), "--against is ''")


def test_a_stage_without_its_input_says_what_to_run(job):
    (job.parent / "log.csv").write_text("user,item,time\n")
    refused(distft("train", job), "There is no dataset", "distft prepare")
    refused(distft("evaluate", job), "There is no dataset", "distft prepare")


def test_serve_refuses_what_it_cannot_serve(tmp_path):
    refused(distft("serve", tmp_path / "nothing"), "There is no bundle")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(distft("serve", tmp_path / "nothing", "--port", port), f"Port {port}", "--port")


def test_json_is_alone_on_stdout_also_for_a_mistake(job):
    done = distft("prepare", job, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"] == "DataError"


def test_a_full_disk_is_told_in_a_paragraph(job, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"No space left.*Free some space"), locked(Storage(job.parent / "run")):
        pass


def test_the_data_sets_are_listed_and_an_unknown_one_is_refused(tmp_path):
    listed = distft("data", "list")
    for name in ("ml-1m", "ml-100k", "online-retail", "jdata", "taobao", "amazon-beauty"):
        assert name in listed.stdout
    refused(distft("data", "fetch", "ml1m"), "ml-1m")


@pytest.mark.ray
def test_a_log_of_unusable_rows_leaves_nothing_behind(job):
    (job.parent / "log.csv").write_bytes(b"user,item,time\na,b,xx\nc,,2\n")
    refused(distft("prepare", job), "2 of 2 rows are unusable", "bad timestamp", "log.csv:1: a,b,xx")
    assert os.listdir(job.parent / "run") == []


@pytest.mark.ray
@pytest.mark.parametrize(
    ("log", "words"),
    [
        (b"", ["log.csv is empty"]),
        (b"usr,item,time\na,b,1\n", ["has no column 'user'", "Did you mean 'usr'?"]),
        (b"\x7fELF\x00\x01\x02" * 500, ["is not text"]),
    ],
    ids=["empty", "wrong column", "binary"],
)
def test_a_log_that_cannot_be_read_leaves_nothing_behind(job, log, words, ray_session):
    (job.parent / "log.csv").write_bytes(log)
    done = CliRunner().invoke(app, ["prepare", str(job)])
    refused(subprocess.CompletedProcess([], done.exit_code, done.stdout, done.stderr), *words)
    assert os.listdir(job.parent / "run") == []
