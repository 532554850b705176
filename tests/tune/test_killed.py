"""SIGKILL of a trial and of the search: the same best job comes out, no ended trial runs again, no process stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from distft.storage import Storage
from distft.tune.ledger import Ledger
from tests.test_pipeline import SMALL

pytestmark = [pytest.mark.proof, pytest.mark.timeout(400)]

SETTINGS = [
    *SMALL,
    "stages=[prepare, tune]",
    "tune={num_trials: 5, epochs: 4, search: {train.learning_rate: {loguniform: [1.0e-4, 1.0e-1]}}}",
]
TIMED = ("train_s", "valid_s")


def start(storage: Path) -> subprocess.Popen[str]:
    words = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-m", "distft", "run", "jobs/quickstart.yaml", "--storage", str(storage), *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said


def trials(storage: Path) -> dict[int, Any]:
    """Of the ledger, read anew; without those whose file is just being written."""
    return Ledger(Storage(storage / "tune"), "ndcg@10").trials


def wait_for(process: subprocess.Popen[str], condition: Any) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def has_checkpoint(storage: Path, number: int) -> bool:
    return any((storage / f"tune/trials/{number:04d}/checkpoints").glob("*/manifest.json"))


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def trial_processes(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [one for one in family(process) if title(one).startswith("ray::ImplicitFunc")]


def title(process: psutil.Process) -> str:
    """What it calls itself; nothing of one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def all_gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are still there after a while: the processes of a Ray whose driver was killed take a few seconds."""
    return psutil.wait_procs(processes, timeout=30)[1]


def told(storage: Path) -> list[dict[str, Any]]:
    """The rows of trials.parquet without what depends on the machine's speed."""
    rows = pq.read_table(storage / "tune/trials.parquet").to_pylist()
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]


def test_a_search_that_is_killed_finds_what_it_would_have_found(tmp_path: Path) -> None:
    calm, struck = tmp_path / "calm", tmp_path / "struck"
    finish(start(calm))
    struck.mkdir()
    shutil.copytree(calm / "dataset", struck / "dataset")

    process = start(struck)
    wait_for(process, lambda: has_checkpoint(struck, 1))
    os.kill(trial_processes(process)[0].pid, signal.SIGKILL)
    wait_for(process, lambda: has_checkpoint(struck, 3))
    everyone = [psutil.Process(process.pid), *family(process)]
    process.kill()
    said = process.communicate()[1]
    assert "goes on from its latest checkpoint" in said
    assert all_gone(everyone) == []

    ended = {number for number, trial in trials(struck).items() if not trial.is_open}
    assert ended and len(ended) < 5
    journals = [struck / f"tune/trials/{number:04d}/metrics.jsonl" for number in ended]
    stamps = [path.stat().st_mtime_ns for path in journals]
    process = start(struck)
    wait_for(process, lambda: len(trial_processes(process)) > 0)
    everyone = family(process)
    finish(process)
    assert [path.stat().st_mtime_ns for path in journals] == stamps, "no trial that had ended ran again"
    assert told(struck) == told(calm)
    best = [(storage / "tune/best.yaml").read_text() for storage in (calm, struck)]
    assert best[0].replace(str(calm), "") == best[1].replace(str(struck), "")
    assert all_gone(everyone) == []
    assert [path for path in (struck / "tune").rglob("*") if path.name.startswith("ray-")] == []
