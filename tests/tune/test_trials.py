"""Trials that hang, and trials of several workers, on a local Ray."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

from distft.storage import Storage
from distft.train.journal import read_lines
from distft.tune.ledger import Ledger
from distft.tune.tuning import tune
from distft.tune.watch import NAMESPACE
from tests.train.datasets import write_circle
from tests.tune.test_tuning import BATCH, RATE, searching

# Ray warns of its own deprecated settings when it pickles them.
pytestmark = [pytest.mark.ray, pytest.mark.proof, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

ONE_MORE: dict[str, Any] = {
    "algorithm": "grid",
    "asha": None,
    "search": {RATE: {"choice": [0.01]}},
    "max_concurrent": 1,
}
"""A search of two trials that run to the end: the job's own rate of 0.02, and one more."""


def stop_once(root: Path, trial: str) -> None:
    """Stops the process of a trial once it trains, as SIGSTOP does: it neither ends nor answers."""
    while not any(line["kind"] == "valid" for line in read_lines(Storage(root / "tune/trials" / trial))):
        time.sleep(0.02)
    (key,) = _internal_kv_list("", namespace=NAMESPACE)
    sign = json.loads(_internal_kv_get(key, namespace=NAMESPACE))
    os.kill(sign["process"]["pid"], signal.SIGSTOP)


@pytest.mark.timeout(240)
def test_a_trial_that_hangs_is_ended_and_goes_on_from_its_checkpoint(ray_session: Any, tmp_path: Path) -> None:
    root = write_circle(tmp_path)
    job = searching(tmp_path, {"epochs": 40}, **ONE_MORE)
    job = job.model_copy(update={"scaling": job.scaling.model_copy(update={"stall_timeout_s": 5.0})})
    warned: list[str] = []
    thread = threading.Thread(target=stop_once, args=(tmp_path, "0001"), daemon=True)
    thread.start()
    tune(job, root, {}, warn=warned.append)
    thread.join(1)
    (warning,) = warned
    assert "Trial 1 (process" in warning and "made no progress for" in warning and "SIGSTOP" in warning
    trials = Ledger(root / "tune", "ndcg@10").trials
    assert [trial.status for trial in trials.values()] == ["finished", "finished"]
    assert [epoch for epoch, _ in trials[1].curve] == list(range(1, 41)), "no epoch twice, none missing"
    assert not _internal_kv_list("", namespace=NAMESPACE)


@pytest.mark.timeout(300)
def test_trials_of_two_workers_report_and_end_early_like_others(ray_session: Any, tmp_path: Path) -> None:
    """The second trial is behind the first at once; were its workers not to go, the third could not start."""
    root = write_circle(tmp_path)
    search = {RATE: {"choice": [1e-6, 0.01]}, BATCH: {"choice": [20]}}
    job = searching(tmp_path, {"epochs": 3}, algorithm="grid", search=search, max_concurrent=1, num_workers=2)
    tune(job, root, {})
    trials = Ledger(root / "tune", "ndcg@10").trials
    assert trials[0].status == "finished" and trials[0].epochs == 3
    assert trials[1].status == "ended early" and trials[1].epochs == 1
    assert trials[2].best_value and trials[2].best_value > trials[1].best_value
    left = [path for path in (tmp_path / "tune").rglob("*") if path.name.startswith("ray-")]
    assert left == []
