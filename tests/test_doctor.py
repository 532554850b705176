"""The checks of machine and cluster: on a real Ray, on two real nodes, and the judgements one by one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distft import doctor
from distft.checkup import checkup
from distft.serve.server import free_port

GB = 10**9


@pytest.mark.usefixtures("ray_session")
def test_a_sound_machine_is_found_sound_and_left_as_it_was(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    for storage in (there, tmp_path / "new"):
        findings = doctor.examine(str(storage), free_port("127.0.0.1"))
        assert {one.what for one in findings} >= {"token", "versions", "clock", "names", "disk", "GPUs", "storage"}
        assert [one for one in findings if one.state == "error"] == []
    assert list(tmp_path.iterdir()) == [there]
    assert list(there.iterdir()) == []


@pytest.mark.usefixtures("ray_session")
def test_a_storage_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    found = doctor.to_json(doctor.examine(str(tmp_path / "file" / "below")))
    assert found["state"] == "error"
    [storage] = [one for one in found["findings"] if one["what"] == "storage"]
    assert "file/below" in storage["found"]
    assert "right to write" in storage["remedy"]


@pytest.fixture(scope="module")
def sound() -> dict[str, Any]:
    """A machine with nothing wrong, made of what this one tells."""
    here = checkup(None, "", "")
    gpu = {"driver": False, "cuda": None, "nccl": None, "devices": []}
    disk = {"path": "/tmp", "free_bytes": 100 * GB}
    return {**here, "gpu": gpu, "disk": disk, "memory_bytes": 8 * GB, "shared_memory_bytes": 4 * GB, "skew_s": 0.0}


CUDA = {"driver": True, "cuda": "13.0", "nccl": "2.28.9", "devices": ["H100", "H100"]}


@pytest.mark.parametrize(
    ("change", "gpus", "wrong"),
    [
        ({}, 0, {}),
        ({"gpu": CUDA}, 2, {}),
        ({"gpu": CUDA}, 4, {"GPUs": ("error", "counts 4, torch sees 2")}),
        ({"gpu": CUDA}, 1, {"GPUs": ("warning", "counts 1")}),
        ({"gpu": {**CUDA, "devices": []}}, 0, {"GPUs": ("warning", "torch sees no GPU")}),
        ({"skew_s": 3.25}, 0, {"clock": ("warning", "3.2 s off")}),
        ({"lookup_s": 10.01}, 0, {"names": ("warning", "10.0 s")}),
        ({"shared_memory_bytes": 64_000_000}, 0, {"shared memory": ("warning", "0.1 GB")}),
        ({"disk": {"path": "/tmp", "free_bytes": 5 * GB}}, 0, {"disk": ("warning", "5.0 GB")}),
        ({"disk": {"path": "/tmp", "free_bytes": GB // 2}}, 0, {"disk": ("error", "0.5 GB")}),
    ],
)
def test_what_is_wrong_is_told_with_a_remedy(
    sound: dict[str, Any], change: dict[str, Any], gpus: int, wrong: dict[str, tuple[str, str]]
) -> None:
    findings = list(doctor._judged("n1", {**sound, **change}, {"Resources": {"GPU": gpus}}))
    bad = {one.what: one for one in findings if one.state != "ok"}
    assert bad.keys() == wrong.keys()
    for what, (state, text) in wrong.items():
        assert bad[what].state == state
        assert text in bad[what].found
        assert bad[what].remedy


def test_another_version_of_anything_is_an_error(sound: dict[str, Any]) -> None:
    versions = {**sound["versions"], "ray": "2.0.0", "deepspeed": None}
    finding = next(doctor._judged("n1", {**sound, "versions": versions}, {"Resources": {}}))
    assert (finding.what, finding.state) == ("versions", "error")
    assert "ray 2.0.0 (here 2." in finding.found
    assert "deepspeed missing" in finding.found


def test_a_folder_of_each_nodes_own_is_not_taken_for_a_shared_one() -> None:
    answers: dict[str, Any] = {"n1": {"not_written": None}, "n2": {"not_written": None}}
    each = list(doctor._storage("/data", answers, {"n1": ["a"], "n2": ["b"]}))
    assert [one.state for one in each] == ["error", "error"]
    assert "2 nodes wrote there, n1 finds 1" in each[0].found
    shared = list(doctor._storage("/data", answers, {"n1": ["a", "b"], "n2": ["a", "b"]}))
    assert [one.state for one in shared] == ["ok", "ok"]


@contextmanager
def node(environ: dict[str, str], *arguments: str) -> Iterator[None]:
    """A Ray node of processes of its own, ended with the block."""
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    process = subprocess.Popen(
        [*command, *arguments], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.mark.proof
@pytest.mark.parametrize("guarded", [True, False])
def test_two_nodes_of_a_cluster_are_examined(tmp_path: Path, guarded: bool) -> None:
    folder = tempfile.mkdtemp(dir="/tmp")  # a socket's path has at most 107 characters
    port, dashboard = free_port("127.0.0.1"), free_port("127.0.0.1")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32} if guarded else {"RAY_AUTH_MODE": "disabled"}
    address = f"127.0.0.1:{port}"
    head = ("--head", f"--port={port}", f"--dashboard-port={dashboard}", "--node-ip-address=127.0.0.1")
    with node(environ, *head, f"--temp-dir={folder}"):
        answers(port)  # a node that finds no head ends at once
        with node(environ, f"--address={address}", "--node-ip-address=127.0.0.1", "--num-gpus=1"):
            found = examined(environ | {"RAY_ADDRESS": address}, tmp_path / "shared", 2)
    shutil.rmtree(folder)
    findings = found["findings"]
    [token] = [one for one in findings if one["what"] == "token"]
    assert token["state"] == ("ok" if guarded else "error"), token
    assert ("refuses" if guarded else "lets in") in token["found"]
    assert [one["state"] for one in findings if one["what"] == "storage"] == ["ok", "ok"]
    gpus = sorted(one["found"] for one in findings if one["what"] == "GPUs")
    assert gpus == ["none", "the cluster counts 1, torch sees 0"]
    assert found["state"] == "error"
    assert len({one["node"] for one in findings if one["what"] == "disk"}) == 2


def answers(port: int) -> None:
    """Returns when somebody listens there."""
    deadline_s = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline_s, "the head does not listen"
            time.sleep(0.2)


def examined(environ: dict[str, str], storage: Path, num_nodes: int) -> dict[str, Any]:
    """What the command tells, once so many nodes are there."""
    command = [sys.executable, "-m", "distft", "doctor", "--json", "--storage", str(storage)]
    deadline_s = time.monotonic() + 180
    while True:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=180, check=False)
        found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        if sum(one["what"] == "disk" for one in found.get("findings", [])) == num_nodes:
            assert done.returncode == 3
            return found
        assert time.monotonic() < deadline_s, done.stderr + done.stdout
        time.sleep(2)
