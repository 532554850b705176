"""Ray Train around the loop: workers in processes of their own, failures, kills, refusals."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from prometheus_client.parser import text_string_to_metric_families

from distft.errors import ArtefactError, StalledError, StorageError, TrainingError, UsageError
from distft.models.weights import read_weights
from distft.storage import Storage
from distft.train import driver
from distft.train.driver import train
from distft.train.failure import read_failures
from tests.train import hanging
from tests.train.datasets import circle_job, write_circle
from tests.train.ranks import run_ranks
from tests.train.test_loop import train_result
from tests.train.test_tensorboard import read

# Ray warns of its own deprecated settings when it pickles them.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_two_workers_finish_and_a_second_call_returns_at_once(tmp_path: Path, ray_session: Any) -> None:
    root, lines = write_circle(tmp_path), []
    job = circle_job(tmp_path, scaling={"num_workers": 2})
    result = train(job, root, {"job": "abc"}, progress=lines.append)
    assert (result.epochs, result.steps) == (2, 8)
    manifest = (root / "train").verified("train")
    assert manifest.info["status"] == "finished" and manifest.made_from == {"job": "abc"}
    assert {"job.yaml", "metrics.jsonl", "best.json"} <= manifest.files.keys()
    assert not list((tmp_path / "train").glob("ray-*"))
    assert [line["epoch"] for line in lines if line["kind"] == "valid"] == [1, 2]
    started = time.perf_counter()
    assert train(job, root, {"job": "abc"}) == result
    assert time.perf_counter() - started < 1
    damaged = next((tmp_path / "train/checkpoints/step-8").glob("weights*"))
    damaged.write_bytes(damaged.read_bytes()[::-1])
    lines.clear()
    more = circle_job(tmp_path, epochs=3, scaling={"num_workers": 1})
    assert train(more, root, {"job": "abc"}, progress=lines.append).steps == 12
    warnings = [line["message"] for line in lines if line["kind"] == "warning"]
    assert len(warnings) == 1 and damaged.name in warnings[0]


def test_a_loss_that_is_not_finite_comes_back_as_it_was_raised(tmp_path: Path, ray_session: Any) -> None:
    root = write_circle(tmp_path)
    job = circle_job(tmp_path, scaling={"num_workers": 2}, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(TrainingError, match="The loss of step"):
        train(job, root, {})
    assert (root / "train").read_json("manifest.json")["info"] == {"status": "running"}


@pytest.mark.proof
def test_a_damaged_shard_comes_back_with_its_name(tmp_path: Path, ray_session: Any) -> None:
    root = write_circle(tmp_path)
    shard = tmp_path / "dataset/train/00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-3] + b"xyz")
    with pytest.raises(ArtefactError, match=r"00001\.parquet"):
        train(circle_job(tmp_path, scaling={"num_workers": 2, "max_failures": 0}), root, {})


@pytest.mark.proof
def test_checkpoints_that_are_all_damaged_are_told_instead_of_starting_anew(tmp_path: Path, ray_session: Any) -> None:
    root, job = write_circle(tmp_path), circle_job(tmp_path)
    run_ranks(1, train_result, job, root)
    for path in (tmp_path / "train/checkpoints").glob("step-*/weights*"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=r"step-8 is damaged.*step-4 is damaged.*--force"):
        train(job, root, {})
    assert train(job, root, {}, anew=True).steps == 8


@pytest.mark.proof
def test_a_disk_that_fills_up_ends_the_run_with_the_reason_and_the_same_command_goes_on(
    make_disk: Callable[[str], Path], ray_session: Any
) -> None:
    small_disk = make_disk("4m")
    root = write_circle(small_disk)
    settings: dict[str, Any] = {"epochs": 60, "checkpoint": {"every_steps": 3}, "early_stopping": None}
    job = circle_job(small_disk, scaling={"num_workers": 2}, **settings)
    ballast = small_disk / "ballast"

    def fill(line: dict[str, Any]) -> None:
        with suppress(OSError), open(ballast, "ab", buffering=0) as stream:
            while line["step"] >= 20:
                stream.write(b"x" * 512)

    with pytest.raises((TrainingError, StorageError), match=r"No space left on device.*Free some space"):
        train(job, root, {}, progress=fill)
    steps = [
        int(path.parent.name.removeprefix("step-")) for path in small_disk.glob("train/checkpoints/*/manifest.json")
    ]
    (root / f"train/checkpoints/step-{max(steps)}").verified("checkpoint")
    ballast.unlink()
    seen: list[int] = []
    assert train(job, root, {}, progress=lambda line: seen.append(line["step"])).steps == 240
    assert min(seen) > max(steps)


def test_what_cannot_run_is_refused_at_once(tmp_path: Path, ray_session: Any) -> None:
    root = write_circle(tmp_path)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"scaling": {"num_workers": 4, "cpus_per_worker": 3}}, r"4 workers of 3 CPU each do not fit"),
        ({"scaling": {"num_workers": 5}}, r"num_streams"),
        ({"precision": "fp16", "zero": {"stage": 1}}, r"fp16"),
    ]
    for settings, message in refused:
        with pytest.raises(UsageError, match=message):
            train(circle_job(tmp_path, **settings), root, {})
    job = circle_job(tmp_path)  # a job that was changed after it was checked is checked again
    unchecked = job.train.model_copy(update={"deepspeed": {"gradient_clipping": 1.0}})
    with pytest.raises(UsageError, match="clip_norm"):
        train(job.model_copy(update={"train": unchecked}), root, {})
    with pytest.raises(ArtefactError, match="no dataset"):
        train(circle_job(tmp_path / "other"), Storage(tmp_path / "other"), {})


def worker_pids() -> list[int]:
    """Ray Train's workers among the descendants of this process, and of no other Ray on the machine."""
    parents, names = {}, {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                pid = int(process.name)
                parents[pid] = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
                names[pid] = (process / "cmdline").read_text()
            except (OSError, IndexError):
                continue

    def ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return [pid for pid, name in names.items() if "RayTrainWorker" in name and ours(pid)]


@pytest.mark.proof
def test_killed_workers_go_on_from_the_last_checkpoint_bit_for_bit(tmp_path: Path, ray_session: Any) -> None:
    settings: dict[str, Any] = {"epochs": 20, "checkpoint": {"every_steps": 3}, "early_stopping": {"patience": 20}}
    settings |= {"scaling": {"num_workers": 2}}
    calm = write_circle(tmp_path / "calm")
    train(circle_job(tmp_path / "calm", **settings), calm, {})
    killed = write_circle(tmp_path / "killed")
    struck: list[int] = []
    warned: list[str] = []

    def kill_once(line: dict[str, Any]) -> None:
        if line["kind"] == "warning":
            warned.append(line["message"])
        if line["step"] >= 20 and not struck:
            struck.extend(worker_pids()[:1])
            for pid in struck:
                os.kill(pid, signal.SIGKILL)

    result = train(circle_job(tmp_path / "killed", **settings), killed, {}, progress=kill_once)
    assert struck and result.steps == 80
    first, second = (read_weights(root / "train/checkpoints/step-80") for root in (calm, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = map(json.loads, (tmp_path / "killed/train/metrics.jsonl").read_text().splitlines())
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == sorted(set(steps))
    (warning,) = warned
    assert "was killed" in warning and "started again" in warning
    assert [step for step, _, _ in read(tmp_path / "killed/train")["train/loss"]] == steps
    wanted = {"step": 80, "running": 0}  # the node hands them out every ten seconds
    deadline = time.monotonic() + 30
    while any((found := figures()).get(f"ray_distft_train_{name}") != value for name, value in wanted.items()):
        assert time.monotonic() < deadline, found
        time.sleep(1)
    assert found["ray_distft_train_restarts_total"] >= 1


def figures() -> dict[str, float]:
    """Our gauges as Prometheus would scrape them from this node."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples if sample.name.startswith("ray_distft_train")]
    return {sample.name: sample.value for sample in samples if sample.labels["job"] == "circle"}


@pytest.mark.proof
def test_ctrl_c_ends_the_workers_and_keeps_the_last_checkpoint(tmp_path: Path, ray_session: Any) -> None:
    root = write_circle(tmp_path)
    job = circle_job(tmp_path, epochs=100_000, early_stopping=None)
    handler = signal.getsignal(signal.SIGINT)
    interrupted = threading.Event()

    def interrupt_once(line: dict[str, Any]) -> None:
        if not interrupted.is_set():
            interrupted.set()
            assert worker_pids()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(job, root, {}, progress=interrupt_once)
    assert signal.getsignal(signal.SIGINT) is handler
    deadline = time.monotonic() + 20
    while worker_pids() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not worker_pids()
    steps = [int(path.parent.name.removeprefix("step-")) for path in tmp_path.glob("train/checkpoints/*/manifest.json")]
    assert steps
    (root / f"train/checkpoints/step-{max(steps)}").verified("checkpoint")


@pytest.mark.proof
def test_a_stopped_worker_ends_the_attempt_in_the_time_set_and_the_run_recovers(
    tmp_path: Path, ray_session: Any
) -> None:
    root = write_circle(tmp_path)
    scaling = {"num_workers": 2, "stall_timeout_s": 6, "max_failures": 1}
    job = circle_job(tmp_path, epochs=20, checkpoint={"every_steps": 3}, early_stopping=None, scaling=scaling)
    stopped: list[int] = []
    told: list[tuple[float, dict[str, Any]]] = []

    def stop_once(line: dict[str, Any]) -> None:
        if line["step"] >= 20 and not stopped:
            stopped.extend(worker_pids()[:1])
            os.kill(stopped[0], signal.SIGSTOP)
            told.append((time.monotonic(), {}))
            threading.Thread(target=follow, daemon=True).start()

    def follow() -> None:
        while not (failed := read_failures(root / "train")):
            time.sleep(0.1)
        told.append((time.monotonic(), failed[0]))

    result = train(job, root, {}, progress=stop_once)
    assert result.steps == 80
    assert not Path(f"/proc/{stopped[0]}").exists(), "a stopped process does not end by being asked"
    (struck_s, _), (ended_s, failure) = told
    assert 5 < ended_s - struck_s < 20
    assert (failure["cause"], failure["pid"]) == ("stall", stopped[0])
    assert "SIGSTOP" in failure["what"] and f"Rank {failure['rank']}" in failure["what"]
    assert not (root / "train").exists("failures.json"), "nothing of it stays once the training has succeeded"


@pytest.mark.proof
@pytest.mark.parametrize(
    ("way", "ranks", "words"),
    [
        ("sleep", "Rank 1 ", "at step 5"),
        ("native", "Rank 1 ", "hangs in native code"),
        ("collective", "Ranks 0, 1 ", "at step 5"),
    ],
)
def test_a_hang_is_ended_and_its_rank_named(
    way: str, ranks: str, words: str, tmp_path: Path, ray_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_circle(tmp_path)
    monkeypatch.setattr(driver, "ray_worker", hanging.worker(way))
    job = circle_job(tmp_path, scaling={"num_workers": 2, "stall_timeout_s": 6, "max_failures": 0})
    with pytest.raises(StalledError) as raised:
        train(job, root, {})
    assert str(raised.value).startswith(ranks) and words in str(raised.value)
    details = raised.value.details
    assert details and details["cause"] == "stall"
    if way == "sleep":
        assert "in sleeps_for_ever" in details["stack"][-1]
