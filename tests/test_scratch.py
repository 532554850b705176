"""The folder that a process has for its Ray: gone with it, whenever it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

KILLED_AT_GOODBYE = """
import os, shutil, signal
from distft import cluster

shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
with cluster.scratch_folder("distft-test-") as folder:
    print(folder, flush=True)
"""

KILLED_INSIDE = """
import os, signal
from distft import cluster

with cluster.scratch_folder("distft-test-") as folder:
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""

FAILED = """
from distft import cluster
from distft.errors import RunError

with cluster.scratch_folder("distft-test-", kept_if_failed=True) as folder:
    print(folder, flush=True)
    raise RunError("it failed")
"""


def folder_of(code: str, ends_with: int) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == ends_with, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("code", [KILLED_AT_GOODBYE, KILLED_INSIDE])
def test_a_killed_process_leaves_no_folder(code: str) -> None:
    folder, deadline_s = folder_of(code, -signal.SIGKILL), time.monotonic() + 30
    assert folder.startswith("/tmp/distft-test-")
    while os.path.exists(folder) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not os.path.exists(folder)


def test_what_a_failed_run_has_logged_is_kept() -> None:
    folder = folder_of(FAILED, 1)
    assert os.listdir(folder) == []
    os.rmdir(folder)
