"""Kills, nodes that go and come, and a notice of preemption, through the command line; see benchmarks/resilience.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.proof, pytest.mark.timeout(600)]


def measured(name: str, tmp_path: Path) -> dict[str, Any]:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/resilience.py", name, str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_killed_workers_and_a_killed_command_end_in_the_same_weights(tmp_path: Path) -> None:
    found = measured("kill", tmp_path)
    (blow,) = found["worker_kills"]
    assert (blow["cause"], blow["blamed_pid"]) == ("killed", blow["killed_pid"])
    assert blow["new_checkpoint_after_s"] < 60 and found["driver_kill"]["new_checkpoint_after_s"] < 60
    for ended in (found["after_worker_kills"], found["after_driver_kill"]):
        assert ended["weights_equal_bit_for_bit"]
        assert ended["last_line"] == ended["last_line_undisturbed"]


def test_a_run_shrinks_when_a_node_goes_and_grows_when_one_comes(tmp_path: Path) -> None:
    found = measured("nodes", tmp_path)
    (failure,) = found["failures"]
    assert failure["cause"] == "node lost"
    assert found["one_worker_after_s"] < 90 and found["two_workers_after_s"] < 90


def test_a_notice_of_preemption_is_answered_by_a_checkpoint_at_once(tmp_path: Path) -> None:
    found = measured("preemption", tmp_path)
    assert found["notice_to_checkpoint_s"] < 10, "the node stays for 15 s"
    assert found["failures"] == [], "no failure is counted against the job, which allows none"
    assert found["one_worker_after_s"] < 90 and found["two_workers_after_s"] < 90
