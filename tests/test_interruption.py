"""Ctrl-C in every stage of a real run: exit code 130, nothing half-written, nothing running; then it continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from distft.stages import STAGES
from distft.storage import Storage
from tests.test_pipeline import SMALL

pytestmark = pytest.mark.proof

MOMENTS = {"prepare": ("prepare …", 3.0), "train": ("  epoch 2:", 0.2), "evaluate": ("evaluate …", 0.5)}
"""The line after which each stage is interrupted, and how many seconds after it."""


def start(storage: Path) -> subprocess.Popen[str]:
    overrides = [part for override in (*SMALL, "train.epochs=12") for part in ("--set", override)]
    command = [sys.executable, "-m", "distft", "run", "jobs/quickstart.yaml", "--storage", str(storage), *overrides]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def interrupt_in(process: subprocess.Popen[str], stage: str) -> str:
    """Sends SIGINT in the midst of the stage; gives all that was said."""
    said: list[str] = []
    line_before, delay_s = MOMENTS[stage]
    assert process.stderr
    for line in process.stderr:
        said.append(line)
        if line.startswith(line_before):
            time.sleep(delay_s)
            process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    return "".join(said)


def offspring(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes that the run left behind: those that name its process id in Ray's session folder."""
    left = []
    for other in psutil.process_iter(["cmdline"]):
        if any(f"_{process.pid}/" in part or part.endswith(f"_{process.pid}") for part in other.info["cmdline"] or []):
            left.append(other)
    return left


def test_ctrl_c_in_each_stage_keeps_what_was_finished(tmp_path):
    storage = tmp_path / "run"
    for stage in ("prepare", "train", "evaluate"):
        with start(storage) as process:
            said = interrupt_in(process, stage)
        assert process.returncode == 130, said
        assert "Traceback" not in said
        assert "Interrupted" in said
        time.sleep(1)
        assert not offspring(process)
        left = [name for name in os.listdir(storage) if name.startswith(".")]
        assert left == [], "no lock and no staging folder stay"
        for done in STAGES.values():
            if done.kind != "train" and (storage / done.artefact).exists():
                Storage(storage / done.artefact).verified(done.kind)
    with start(storage) as process:
        out, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "prepare is up to date" in said
    assert "train is up to date" in said
    assert "test split" in out
    assert not offspring(process)
