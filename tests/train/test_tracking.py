"""A training in MLflow: a real SQLite database, and a real server that goes away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distft.errors import UsageError
from distft.job import Job
from distft.storage import Storage
from distft.train import tracking
from distft.train.tracking import MlflowRun, check_reachable, check_tracking
from tests.train.datasets import circle_job
from tests.train.test_tensorboard import line

# MLflow and what it needs warn of each other's deprecated names.
pytestmark = pytest.mark.filterwarnings("ignore")


def tracked(tmp_path: Path, uri: str) -> Job:
    job = circle_job(tmp_path)
    return job.model_copy(update={"tracking": job.tracking.model_copy(update={"mlflow": uri})})


def history(client: Any, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def test_a_run_that_goes_on_is_one_run_with_every_line_once(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    job, folder, said = tracked(tmp_path, f"sqlite:///{tmp_path}/mlflow.db"), Storage(tmp_path / "train"), []
    folder.make()
    valid = line(50, 2.5, "valid", **{"ndcg@10": 0.25})
    first = MlflowRun(job, "train", folder, said.append)
    first.begin([])
    first.see([line(50, 3.0), valid])  # and killed: no end
    wait_for(lambda: not first._waiting)
    second = MlflowRun(job, "train", folder, said.append)
    second.begin([line(50, 3.0), valid, line(100, 2.0)])
    second.see([line(150, 1.0)])
    second.end("finished", [])
    client = MlflowClient(tracking_uri=job.tracking.mlflow)
    (experiment,) = [one for one in client.search_experiments() if one.name == job.name]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["distft.storage"] == folder.uri
    assert run.data.params["train.batch_size"] == str(job.train.batch_size)
    assert history(client, run.info.run_id, "train/loss") == [(50, 3.0), (100, 2.0), (150, 1.0)]
    assert history(client, run.info.run_id, "valid/ndcg_at_10") == [(50, 0.25)]
    client.delete_run(run.info.run_id)
    third = MlflowRun(job, "train", folder, said.append)
    third.begin([line(50, 3.0)])
    third.end("interrupted", [])
    (other,) = client.search_runs([experiment.experiment_id])
    assert other.info.run_id != run.info.run_id and other.info.status == "KILLED"
    assert said == []


def test_what_cannot_be_reached_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="does not answer"):
        check_reachable(tracked(tmp_path, f"sqlite:///{tmp_path}/file/mlflow.db"))
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    check_tracking(circle_job(tmp_path))
    with pytest.raises(UsageError, match=r"mlflow cannot be imported.*distft\[mlflow\]"):
        check_tracking(tracked(tmp_path, "http://127.0.0.1:9"))


@pytest.mark.proof
def test_a_server_that_goes_away_gets_what_it_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(tracking, "RETRY_S", 0.2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job, folder, said = tracked(tmp_path, f"http://127.0.0.1:{port}"), Storage(tmp_path / "train"), []
    folder.make()
    server = serve(tmp_path, port)
    try:
        check_reachable(job)
        run = MlflowRun(job, "train", folder, said.append)
        run.begin([])
        run.see([line(50, 3.0)])
        wait_for(lambda: not run._waiting)
        stop(server)
        with pytest.raises(UsageError, match="does not answer"):
            check_reachable(job)
        run.see([line(100, 2.0)])
        run.see([line(150, 1.5)])
        wait_for(lambda: said)
        assert len(said) == 1 and "the training goes on" in said[0]["message"]
        server = serve(tmp_path, port)
        run.see([line(200, 1.0)])
        run.end("failed", [])
        assert len(said) == 2 and "answers again" in said[1]["message"]
        client = MlflowClient(tracking_uri=job.tracking.mlflow)
        experiment = client.get_experiment_by_name(job.name)
        (found,) = client.search_runs([experiment.experiment_id])
        run_id = found.info.run_id
        assert history(client, run_id, "train/loss") == [(50, 3.0), (100, 2.0), (150, 1.5), (200, 1.0)]
        assert client.get_run(run_id).info.status == "FAILED"
    finally:
        stop(server)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def serve(tmp_path: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with open(tmp_path / "server.log", "ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
        else:
            return server
    stop(server)
    raise AssertionError((tmp_path / "server.log").read_text())


def stop(server: subprocess.Popen[bytes]) -> None:
    """The server is a process group of its own: what it has started goes with it."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
