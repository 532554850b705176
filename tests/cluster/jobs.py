"""What the proofs submit: a small job, the command line, and what a run left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.job_submission import JobSubmissionClient

from cluster.local import LocalCluster, Node
from distft.models.weights import read_weights
from distft.storage import Storage

ROOT = Path(__file__).parent.parent.parent

JOB = """
name: proof
storage: /tmp/replaced
stages: [prepare, train, evaluate, export]
data:
  events: [{source: synthetic, num_users: 2000, num_items: 500}]
  target_events: [purchase]
  split: {by: leave_one_out}
model: {kind: transformer, dim: 32, num_blocks: 1, num_heads: 2, dropout: 0.1, max_history: 30}
train:
  epochs: 8
  batch_size: 32
  zero: {stage: 2}
  early_stopping: null
  checkpoint: {every_steps: 20, keep: 3}
scaling: {num_workers: 2, use_gpu: false, cpus_per_worker: 1.9, max_failures: 3}
evaluate: {exclude_seen: targets}
serve: {history: none}
"""
"""A node of three CPUs has room for one such worker, which has one thread, and for one replica of a service."""

CPUS = 3


@dataclass
class Client:
    """Somebody with the cluster's address and token, in a folder with the job file and distft's code."""

    cluster: LocalCluster
    folder: Path

    @property
    def jobs(self) -> JobSubmissionClient:
        """Ray's own way to the cluster's jobs."""
        return JobSubmissionClient(self.cluster.url, headers={"Authorization": f"Bearer {self.cluster.token}"})

    def environment(self, **changes: str) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**mine, "PYTHONPATH": str(ROOT), **self.cluster.environment, **changes}

    def run(self, *words: str, **changes: str) -> tuple[int, dict[str, Any], str]:
        """(exit code, the JSON object on stdout, stderr) of a command of distft."""
        command = [sys.executable, "-m", "distft", *words, "--json"]
        environment = self.environment(**changes)
        done = subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=280, check=False
        )
        return done.returncode, json.loads(done.stdout or "{}"), done.stderr

    def submit(self, storage: Path, *overrides: str, follow: bool = False) -> dict[str, Any]:
        """What the command tells of a job that was submitted, or that has ended well, if it is followed."""
        sets = [word for override in overrides for word in ("--set", override)]
        words = ["submit", "job.yaml", "--storage", str(storage), *sets, *(["--follow"] if follow else [])]
        code, told, said = self.run(*words)
        assert code == 0, said
        return told

    def ended(self, id_: str) -> dict[str, Any]:
        """A job once it has ended; how well is for the caller to say."""
        return self.run("jobs", "logs", id_, "--follow")[1]


def checkpoint(storage: Path) -> tuple[int, int]:
    """(step, world size) of the checkpoint that was committed last; (0, 0) before the first."""
    try:
        name = json.loads((storage / "train" / "latest.json").read_text())["checkpoint"]
        info = json.loads((storage / "train" / name / "manifest.json").read_text())["info"]
    except (OSError, ValueError):
        return 0, 0
    return info["step"], info["world_size"]


def until(happened: Callable[[], bool], what: str, limit_s: float = 120) -> float:
    """Seconds until it has happened."""
    began_s = time.monotonic()
    while not happened():
        assert time.monotonic() - began_s < limit_s, f"{what}: did not happen in {limit_s:.0f} s"
        time.sleep(0.1)
    return time.monotonic() - began_s


def trains(node: Node) -> bool:
    """True if a training worker runs there."""
    return any("RayTrainWorker" in command(pid) for pid in node.pids())


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def equal_weights(one: Path, other: Path) -> bool:
    """True if two trainings ended at the same step with the same weights, bit for bit."""
    if checkpoint(one)[0] != checkpoint(other)[0]:
        return False
    first, second = (
        read_weights(Storage(storage / "train" / "checkpoints" / f"step-{checkpoint(storage)[0]}"))
        for storage in (one, other)
    )
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)


@contextmanager
def asking(url: str, key: str, every_s: float = 0.1) -> Iterator[list[str]]:
    """Asks a service all the while; the list gets "" for an answer, else what went wrong."""
    outcomes: list[str] = []
    over = threading.Event()

    def ask() -> None:
        body = json.dumps({"history": [{"event": "view", "item_id": "i000001"}], "k": 3}).encode()
        headers = {"Authorization": f"Bearer {key}", "content-type": "application/json"}
        while not over.wait(every_s):
            try:
                with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as answer:
                    outcomes.append("" if json.load(answer)["items"] else "no items")
            except OSError as error:
                outcomes.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield outcomes
    finally:
        over.set()
        thread.join()
