"""A training in MLflow: its job as parameters, its journal as metrics, one run across all restarts.

Enters: ``tracking`` of the job and lines of metrics.jsonl. Leaves: a run in a database or on a server. Surprising
choice: what the run already has is asked from MLflow, so that a training that goes on sends the rest of the journal
and nothing twice, also where the server was away for a while. Training never waits for it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from distft.errors import ArtefactError, DistftError, UsageError
from distft.job import Job
from distft.sections.train import Tracking
from distft.storage import Storage
from distft.train.following import Ending, Line, Observer, place
from distft.train.tensorboard import scalars

NOTE = "mlflow.json"
"""In the stage's folder: the key by which this training's run is found."""
KEY = "distft.key"
RETRY_S, END_S = 30.0, 30.0
"""Pause between two tries, and how long the end of a training waits for MLflow."""
BATCH, MAX_PARAMS, MAX_PARAM_CHARS = 1000, 100, 6000
"""Metrics and parameters that MLflow takes at once, and how long a parameter may be."""
STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
ENVIRONMENT = {
    # MLflow's own defaults would hold up the end of a training for minutes where a server is gone.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def check_tracking(job: Job) -> None:
    """Raises UsageError where the job asks for MLflow and this Python does not have it."""
    tracking = job.tracking
    if tracking.mlflow is None:
        return
    wanted = ["mlflow", *(["sqlalchemy", "alembic"] if not tracking.is_server else [])]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"tracking.mlflow is set, but {' and '.join(missing)} cannot be imported",
            "MLflow where the training is started",
            "Install it, pip install 'distft[mlflow]', or take tracking.mlflow out of the job.",
        )


def check_reachable(job: Job) -> None:
    """Raises UsageError where the job's MLflow does not answer."""
    if job.tracking.mlflow is not None:
        try:
            _client(job.tracking).search_experiments(max_results=1)
        except failures() as error:
            raise UsageError(
                f"tracking.mlflow is {job.tracking.mlflow}, which does not answer: {_first_line(error)}",
                "a database or an MLflow server that can be reached",
                "Start it, correct tracking.mlflow, or take it out of the job.",
            ) from error


class MlflowRun(Observer):
    """The run of one training; ``show`` gets a warning when MLflow is lost, and another when it is back.

    A thread of its own sends: a server that does not answer holds up nobody else.
    """

    def __init__(self, job: Job, stage: str, folder: Storage, show: Callable[[Line], None]) -> None:
        self._sender = _Sender(job, stage, folder)
        self._show = show
        self._waiting: list[Line] = []
        self._wake, self._changed = threading.Event(), threading.Lock()
        self._status: str | None = None
        self._lost = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")

    def begin(self, known: Sequence[Line]) -> None:
        self._waiting = list(known)
        self._wake.set()
        self._thread.start()

    def see(self, lines: Sequence[Line]) -> None:
        if lines:
            with self._changed:
                self._waiting += lines
            self._wake.set()

    def end(self, ending: Ending, journal: Sequence[Line]) -> None:
        self._status = STATUS[ending]
        self._wake.set()
        self._thread.join(timeout=END_S)
        if self._thread.is_alive() or self._waiting:
            self._warn("MLflow did not take the last lines of metrics.jsonl, nor that the training is over")

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            status = self._status
            done = self._send(status)
            if status is not None:
                return
            if not done:
                self._wake.wait(RETRY_S)  # new lines wake it earlier, which is soon enough
                self._wake.set()

    def _send(self, status: str | None) -> bool:
        """Sends what waits, and how it ended; False where MLflow does not take it now."""
        with self._changed:
            lines = list(self._waiting)
        try:
            self._sender.send(lines, status)
        except failures() as error:
            if not self._lost:
                self._warn(f"MLflow does not take the metrics, the training goes on: {_first_line(error)}")
            self._lost = True
            return False
        with self._changed:
            del self._waiting[: len(lines)]
        if self._lost:
            self._warn("MLflow answers again, and has the lines that it had missed")
            self._lost = False
        return True

    def _warn(self, message: str) -> None:
        step = self._waiting[-1]["step"] if self._waiting else 0
        self._show({"kind": "warning", "step": step, "message": message})


class _Sender:
    """What is said to MLflow. Raises one of ``failures()`` where it does not take it."""

    def __init__(self, job: Job, stage: str, folder: Storage) -> None:
        self._job, self._stage, self._folder = job, stage, folder
        self._client: Any = None
        self._run_id = ""
        self._sent = (0, False)

    def send(self, lines: Sequence[Line], status: str | None) -> None:
        """Sends those lines that the run does not have, then how the training ended."""
        if self._client is None:
            self._open(_client(self._job.tracking))
        new = [line for line in lines if place(line) > self._sent]
        metrics = [metric for line in new for metric in _metrics(line)]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + BATCH])
        self._sent = max([self._sent, *map(place, new)])
        if status is not None:
            self._client.set_terminated(self._run_id, status)

    def _open(self, client: Any) -> None:
        """Finds the run that an earlier start made, by the key that was noted before it was made; or makes one."""
        name = self._job.tracking.experiment or self._job.name
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        key = self._key()
        found = client.search_runs([experiment_id], filter_string=f"tags.`{KEY}` = '{key}'")
        run = found[0] if found else self._create(client, experiment_id, key)
        if found:
            client.update_run(run.info.run_id, status="RUNNING")
        self._run_id = run.info.run_id
        self._sent = _latest(client, self._run_id, set(run.data.metrics))
        self._client = client

    def _key(self) -> str:
        """What tells this training's run from all others; noted in the stage's folder, with which it goes."""
        if self._folder.exists(NOTE):
            with suppress(ArtefactError):
                return str(self._folder.read_json(NOTE).get("key", ""))
        key = uuid.uuid4().hex
        self._folder.write_json(NOTE, {"key": key})
        return key

    def _create(self, client: Any, experiment_id: str, key: str) -> Any:
        from mlflow.entities import Param

        tags = {KEY: key, "distft.storage": self._folder.uri, "distft.stage": self._stage}
        run = client.create_run(experiment_id, tags=tags, run_name=f"{self._job.name} {self._stage}")
        values = _flat(self._job.model_dump(mode="json", by_alias=True))
        params = [Param(name, value[:MAX_PARAM_CHARS]) for name, value in values.items() if value]
        for start in range(0, len(params), MAX_PARAMS):
            client.log_batch(run.info.run_id, params=params[start : start + MAX_PARAMS])
        return run


def _client(tracking: Tracking) -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # they tell every user how they make their tables
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=tracking.mlflow)


def failures() -> tuple[type[Exception], ...]:
    """What is raised where MLflow cannot be reached or refuses, or its key cannot be noted."""
    from mlflow.exceptions import MlflowException

    return (MlflowException, OSError, DistftError)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _metrics(line: Line) -> list[Any]:
    """MLflow's names have no @: ndcg@10 is ndcg_at_10 there."""
    from mlflow.entities import Metric

    time_ms = int(line.get("time_s", 0) * 1000)
    values = scalars(line).items()
    return [Metric(name.replace("@", "_at_"), value, time_ms, line["step"]) for name, value in values]


def _latest(client: Any, run_id: str, names: set[str]) -> tuple[int, bool]:
    """Place of the latest line that the run has."""
    latest = (0, False)
    for name in ("train/loss", "valid/loss"):
        if name in names:
            steps = [metric.step for metric in client.get_metric_history(run_id, name)]
            latest = max(latest, (max(steps), name.startswith("valid")))
    return latest


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Every key of the job by its dotted path, as text; list items by their number."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        inner = [_flat(one, f"{path}.{key}" if path else str(key)) for key, one in items]
        return {key: text for one in inner for key, text in one.items()}
    return {path: str(value)}
