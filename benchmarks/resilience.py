"""What a failure costs: kills, a stop, nodes that go and come, through the command line.

Run:  .venv/bin/python benchmarks/resilience.py NAME [OUT.json]

NAME is one of

- ``kills``: SIGKILL of a worker at five random moments of one run, and of the whole command once in another run,
  against an undisturbed run: weights bit for bit, steps done again, seconds until there was a new step
- ``kill``: the same with one kill of a worker
- ``stop``: SIGSTOP of a worker
- ``nodes``: an elastic run of two workers on two Ray nodes: one node is killed, and later another one comes
- ``preemption``: the same, and one node announces that it will go in 15 s

Each starts from ``benchmarks/results/resilience.yaml`` in an empty folder, and writes
``benchmarks/results/resilience-NAME.json``, or OUT.json. A new step is seen by its checkpoint, so the seconds until it
include the steps up to there.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from distft.models.weights import read_weights
from distft.storage import Storage

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
JOB = RESULTS / "resilience.yaml"
EVERY = 20
"""Steps between checkpoints, as in the job."""
ELASTIC_EPOCHS = 60
"""More than the elastic runs get to: they are interrupted once all has happened."""


class Run:
    """``distft train`` in a process of its own, and what its folder says of it."""

    def __init__(self, storage: Path, *overrides: str) -> None:
        self.storage = storage
        self.train = storage / "train"
        self.words = [part for override in overrides for part in ("--set", override)]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "distft", "train", str(JOB), "--storage", str(self.storage), *self.words]
        with (self.storage / "said.txt").open("a") as said:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
        self.started_s = time.monotonic()

    def workers(self) -> list[psutil.Process]:
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in family if "RayTrainWorker" in " ".join(one.cmdline())]

    def checkpoint(self) -> tuple[int, int]:
        """(step, number of workers) of the checkpoint that was committed last; (0, 0) before the first."""
        try:
            name = json.loads((self.train / "latest.json").read_text())["checkpoint"]
            info = json.loads((self.train / name / "manifest.json").read_text())["info"]
        except (OSError, ValueError):
            return 0, 0
        return info["step"], info["world_size"]

    def out_of_turn(self) -> bool:
        """True if the checkpoint committed last is not of an epoch's end: where only these are due, a notice's."""
        line = json.loads((self.train / "metrics.jsonl").read_text().splitlines()[0])
        return self.checkpoint()[0] % (line["total_steps"] // ELASTIC_EPOCHS) != 0

    def failures(self) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = json.loads((self.train / "failures.json").read_text())
        except (OSError, ValueError):
            return []
        return found

    def wait(self, happened: Callable[[], bool], what: str, limit_s: float = 150) -> float:
        """Seconds until it has happened."""
        started_s = time.monotonic()
        while not happened():
            if self.process.poll() is not None or time.monotonic() - started_s > limit_s:
                raise SystemExit(f"{what}: did not happen.\n{(self.storage / 'said.txt').read_text()[-3000:]}")
            time.sleep(0.02)
        return time.monotonic() - started_s

    def finish(self) -> float:
        """Seconds of the whole command."""
        if self.process.wait(timeout=400):
            raise SystemExit((self.storage / "said.txt").read_text()[-3000:])
        return time.monotonic() - self.started_s

    def weights(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Weights, and the last line of training, less the times in it."""
        lines = [json.loads(line) for line in (self.train / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in lines if line["kind"] == "train"][-1]
        step, _ = self.checkpoint()
        weights = read_weights(Storage(self.train / "checkpoints" / f"step-{step}"))
        return weights, {"step": last["step"], "loss": last["loss"]}


def equals(found: Run, expected: Run) -> dict[str, Any]:
    (weights, end), (other, wanted) = found.weights(), expected.weights()
    same = weights.keys() == other.keys() and all(bool((weights[name] == other[name]).all()) for name in weights)
    return {"weights_equal_bit_for_bit": same, "last_line": end, "last_line_undisturbed": wanted}


def kills(folder: Path, dataset: Path, count: int = 5) -> dict[str, Any]:
    calm = Run(placed(folder / "calm", dataset))
    took_s = calm.finish()
    steps = calm.checkpoint()[0]
    draw = random.Random(7)
    moments = sorted(draw.sample(range(EVERY + 1, steps - EVERY), count))
    struck = Run(placed(folder / "struck", dataset), f"scaling.max_failures={count}")
    blows = [killed(struck, moment, draw.random()) for moment in moments]
    struck.finish()
    driver = Run(placed(folder / "driver", dataset))
    moment = draw.randrange(EVERY + 1, steps - EVERY)
    driver.wait(lambda: driver.checkpoint()[0] >= moment // EVERY * EVERY, "the driver's run")
    time.sleep(0.5)
    orphans = driver.workers()
    driver.process.kill()
    driver.process.wait()
    struck_s = time.monotonic()
    driver.start()
    psutil.wait_procs(orphans, timeout=60)  # they go a few seconds later than the command, and may end a checkpoint
    gone_s, before = time.monotonic() - struck_s, driver.checkpoint()[0]
    driver.wait(lambda: driver.checkpoint()[0] > before, "a new step")
    new_s = time.monotonic() - struck_s
    return {
        "steps": steps,
        "checkpoint_every_steps": EVERY,
        "undisturbed_s": round(took_s, 1),
        "worker_kills": blows,
        "after_worker_kills": equals(struck, calm),
        "driver_kill": {
            "workers_gone_after_s": round(gone_s, 1),
            "resumed_from_step": before,
            "new_checkpoint_after_s": round(new_s, 1),
        },
        "after_driver_kill": (driver.finish(), equals(driver, calm))[1],
    }


def killed(run: Run, moment: int, later_s: float) -> dict[str, Any]:
    """Kills a worker somewhere after the checkpoint before step ``moment``."""
    known = len(run.failures())
    run.wait(lambda: run.checkpoint()[0] >= moment // EVERY * EVERY and len(run.workers()) == 2, f"step {moment}")
    time.sleep(later_s)
    victim = random.Random(moment).choice(run.workers())
    victim.kill()
    struck_s = time.monotonic()
    run.wait(lambda: len(run.failures()) > known, "the failure")
    failure, before = run.failures()[-1], run.checkpoint()[0]
    run.wait(lambda: run.checkpoint()[0] > before, "a new step")
    return {
        "killed_pid": victim.pid,
        "blamed_pid": failure["pid"],
        "cause": failure["cause"],
        "reached_step": failure["reached"],
        "resumed_from_step": before,
        "steps_done_again": failure["reached"] - before,
        "new_checkpoint_after_s": round(time.monotonic() - struck_s, 1),
    }


def stop(folder: Path, dataset: Path) -> dict[str, Any]:
    timeout_s = 10
    run = Run(placed(folder / "stopped", dataset), f"scaling.stall_timeout_s={timeout_s}")
    run.wait(lambda: run.checkpoint()[0] >= 2 * EVERY, "two checkpoints")
    before = run.checkpoint()[0]
    victim = run.workers()[1]
    victim.suspend()
    ended_s = run.wait(lambda: bool(run.failures()), "the end of the attempt")
    failure = run.failures()[-1]
    again_s = ended_s + run.wait(lambda: run.checkpoint()[0] > before, "a new step")
    gone = not victim.is_running()
    run.finish()
    return {
        "stall_timeout_s": timeout_s,
        "attempt_ended_after_s": round(ended_s, 1),
        "new_checkpoint_after_s": round(again_s, 1),
        "said": failure["what"],
        "stopped_pid": victim.pid,
        "stopped_process_is_gone": gone,
        "steps": run.checkpoint()[0],
    }


def nodes(folder: Path, dataset: Path, preempted: bool = False) -> dict[str, Any]:
    import ray
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 10**8}
    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    other = cluster.add_node(**size)
    os.environ["RAY_ADDRESS"] = cluster.address
    elastic = ("scaling.num_workers=[1,2]", "scaling.resize_interval_s=5", f"train.epochs={ELASTIC_EPOCHS}")
    # With one every few steps the checkpoint out of turn would be the latest for a second, or not to be told apart.
    own = (
        ("scaling.max_failures=0", "train.checkpoint.every_steps=100000") if preempted else ("scaling.max_failures=1",)
    )
    run = Run(placed(folder / "nodes", dataset), *elastic, *own)
    try:
        run.wait(lambda: run.checkpoint() >= (2 * EVERY, 2), "two checkpoints of two workers")
        before, struck_s = run.checkpoint()[0], time.monotonic()
        result: dict[str, Any] = {"checkpoint_before": before}
        if preempted:
            drain(cluster.address, other.node_id)
            run.wait(run.out_of_turn, "a checkpoint out of turn")
            result["notice_to_checkpoint_s"] = round(time.monotonic() - struck_s, 2)
        else:
            cluster.remove_node(other, allow_graceful=False)
        run.wait(lambda: run.checkpoint()[1] == 1, "a checkpoint of one worker")
        result |= {"one_worker_after_s": round(time.monotonic() - struck_s, 1), "failures": failures_of(run)}
        alone = run.checkpoint()[0]
        cluster.add_node(**size)
        grown_s = run.wait(lambda: run.checkpoint()[1] == 2, "a checkpoint of two workers again")
        result |= {"two_workers_after_s": round(grown_s, 1), "steps_alone": run.checkpoint()[0] - alone}
    finally:
        run.process.send_signal(signal.SIGINT)
        run.process.wait(timeout=60)
        del os.environ["RAY_ADDRESS"]
        ray.shutdown()
        cluster.shutdown()
    return result


def failures_of(run: Run) -> list[dict[str, Any]]:
    return [{key: failure[key] for key in ("cause", "what", "rank", "followed")} for failure in run.failures()]


def preemption(folder: Path, dataset: Path) -> dict[str, Any]:
    return nodes(folder, dataset, preempted=True)


def drain(address: str, node_id: str) -> None:
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "drain-node", "--address", address, "--node-id", node_id, *reason]
    subprocess.run([*command, "--deadline-remaining-seconds", "15"], check=True, capture_output=True)


def placed(storage: Path, dataset: Path) -> Path:
    """An empty storage with the dataset in it."""
    storage.mkdir()
    shutil.copytree(dataset, storage / "dataset")
    return storage


def kill(folder: Path, dataset: Path) -> dict[str, Any]:
    return kills(folder, dataset, count=1)


MEASURES = {"kill": kill, "kills": kills, "stop": stop, "nodes": nodes, "preemption": preemption}


def main() -> None:
    name = sys.argv[1]
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS / f"resilience-{name}.json"
    with tempfile.TemporaryDirectory(prefix="resilience-") as scratch:
        folder = Path(scratch)
        prepare = [sys.executable, "-m", "distft", "prepare", str(JOB), "--storage", str(folder / "shop")]
        subprocess.run(prepare, cwd=ROOT, check=True, capture_output=True)
        result = {"command": f"benchmarks/resilience.py {name}", **MEASURES[name](folder, folder / "shop" / "dataset")}
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
