"""SIGKILL at 20 moments of a prepare that replaces a dataset: whoever looks sees the old one or the new one, whole.

Two lanes with a storage each, at the same time: most of a kill is waiting for Ray to start and to be gone.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from distft.errors import DistftError
from distft.storage import MANIFEST, Storage
from tests.data import logs

pytestmark = pytest.mark.proof

NUM_LANES, NUM_KILLS = 2, 10
MINIMA = (1, 4)
"""Two datasets take each other's place: with this k-core of users and with that one."""


class Reader(threading.Thread):
    """Verifies the dataset again and again; keeps the identities that it saw and what it found broken."""

    def __init__(self, dataset: Path) -> None:
        super().__init__()
        self._dataset, self._stopped = Storage(dataset), threading.Event()
        self.seen: set[str] = set()
        self.broken: list[str] = []
        self.num_looks = 0

    def run(self) -> None:
        while not self._stopped.wait(0.05):
            before = self._manifest()
            try:
                self.seen.add(self._dataset.verified("dataset").sha256)
                self.num_looks += 1
            except (DistftError, OSError) as error:
                if self._manifest() == before:  # else it was replaced in the midst of looking: look again
                    self.broken.append(str(error))

    def _manifest(self) -> bytes:
        return (self._dataset.path / MANIFEST).read_bytes()

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def start(folder: Path, minimum: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "distft", "prepare", str(folder / "job.yaml"), "--force"]
    overrides = ["--set", f"data.clean.min_user_events={minimum}"]
    return subprocess.Popen([*command, *overrides], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finished(folder: Path, minimum: int) -> tuple[str, float]:
    """(identity of the dataset, seconds from the first word of prepare to its end)."""
    with start(folder, minimum) as process:
        assert process.stderr
        said = process.stderr.readline()
        began_s = time.monotonic()
        said += process.stderr.read()
    assert process.returncode == 0, said
    return Storage(folder / "run/dataset").verified("dataset").sha256, time.monotonic() - began_s


def killed(process: subprocess.Popen[str], after_s: float) -> tuple[list[psutil.Process], set[str]]:
    """Kills the process some seconds after its first word; gives the processes and the folders of its Ray."""
    assert process.stderr
    process.stderr.readline()
    time.sleep(after_s)
    offspring, folders = [], set()
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            folders.update(re.findall(r"/tmp/distft-ray-\w+", " ".join(child.cmdline())))
            offspring.append(child)
        except psutil.Error:
            continue
    process.kill()
    process.wait()
    return offspring, folders


def job_file(folder: Path) -> None:
    logs.write_csv(folder / "log.csv", logs.rows(num_users=3000, num_items=400))
    job: dict[str, Any] = logs.job(folder).model_dump(mode="json", by_alias=True, exclude_unset=True)
    (folder / "job.yaml").write_text(json.dumps(job))


@pytest.mark.timeout(900)  # twenty starts of Ray
def test_a_killed_prepare_leaves_the_old_dataset_or_the_new_one_and_nothing_else(tmp_path: Path) -> None:
    with ThreadPoolExecutor(NUM_LANES) as pool:
        lanes = [pool.submit(kill_often, tmp_path / f"lane-{number}", number) for number in range(NUM_LANES)]
        outcomes = [outcome for lane in lanes for outcome in lane.result()]
    assert len(outcomes) == NUM_LANES * NUM_KILLS
    assert not all(outcomes), "some kills fell before the new dataset was there"


def kill_often(folder: Path, seed: int) -> list[bool]:
    """Kills prepare again and again; whether the new dataset was there, for each kill."""
    folder.mkdir()
    job_file(folder)
    identities, took_s = zip(*(finished(folder, minimum) for minimum in MINIMA), strict=True)
    assert identities[0] != identities[1]
    dataset, rng, outcomes = folder / "run/dataset", random.Random(seed), []
    reader = Reader(dataset)
    reader.start()
    try:
        for _ in range(NUM_KILLS):
            there = Storage(dataset).verified("dataset").sha256
            with start(folder, MINIMA[1 - identities.index(there)]) as process:
                offspring, folders = killed(process, rng.uniform(0, max(took_s)))
            _, alive = psutil.wait_procs(offspring, timeout=30)
            assert not alive, [child.cmdline() for child in alive]
            deadline_s = time.monotonic() + 30
            while (left := [path for path in folders if os.path.exists(path)]) and time.monotonic() < deadline_s:
                time.sleep(0.1)
            assert not left
            outcomes.append(Storage(dataset).verified("dataset").sha256 != there)
    finally:
        reader.stop()
    assert reader.broken == []
    assert reader.num_looks > NUM_KILLS
    assert reader.seen <= set(identities)
    assert finished(folder, MINIMA[0])[0] == identities[0]
    assert [name for name in os.listdir(folder / "run") if name.startswith(".")] == []
    return outcomes
