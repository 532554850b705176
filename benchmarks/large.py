"""The shipped jobs of 10 and 100 million parameters, trained for some steps: speed, loss, and memory against the plan.

Run:  .venv/bin/python benchmarks/large.py 10m|100m [USERS]

``distft run jobs/large-NAME.yaml`` as shipped but for the number of made-up users, which decides how many steps an
epoch has. ``peak_mb`` is the most that a worker's resident memory was seen to be, four times a second; ``planned_mb``
is what ``distft plan`` says of it, with what the libraries take. Writes ``benchmarks/results/large-NAME.json``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from ranking import processor

from distft.jobfile import load_job
from distft.storage import Storage
from distft.train.journal import read_lines

ROOT = Path(__file__).parent.parent
USERS = {"10m": 20_000, "100m": 1_000}
WORKER = "ray::RayTrainWorker"


def main() -> None:
    name, users = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else USERS[sys.argv[1]]
    job = str(ROOT / "jobs" / f"large-{name}.yaml")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="distft-bench-") as folder:
        words = [job, "--storage", folder, "--set", f"data.events.0.num_users={users}", "--json"]
        seen, told = watched([sys.executable, "-m", "distft", "run", *words])
        plan = distft("plan", *words, "--no-calibration")
        lines = [line for line in read_lines(Storage(folder) / "train") if line["kind"] == "train"]
    stage = load_job(job).train.zero.stage
    planned = next(one for one in plan["settings"] if (one["stage"], one["offload"]) == (stage, "none"))
    peak = max(max(some) for some in seen.values())
    result = {
        "command": " ".join(["benchmarks/large.py", *sys.argv[1:]]),
        "processor": processor(),
        "load_before": round(load, 2),
        "parameters": plan["parameters"],
        "users": users,
        "training": told["train"],
        "loss": [round(lines[0]["loss"], 4), round(lines[-1]["loss"], 4)],
        "step_s": round(statistics.median(line["step_s"] for line in lines), 3),
        "tokens_per_s": round(statistics.median(line["tokens_per_s"] for line in lines)),
        "peak_mb": round(peak / 1e6),
        "planned_mb": round(planned["device_bytes"] / 1e6),
        "planned_share": round(planned["device_bytes"] / peak, 3),
    }
    path = ROOT / "benchmarks" / "results" / f"large-{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def distft(*words: str) -> dict[str, Any]:
    """What a command says with ``--json``."""
    done = subprocess.run([sys.executable, "-m", "distft", *words], stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def watched(command: list[str]) -> tuple[dict[int, list[int]], dict[str, Any]]:
    """Bytes of resident memory of each training worker while a command runs, and what it says at its end."""
    seen: dict[int, list[int]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for pid, resident in resident_workers(process.pid):
                seen.setdefault(pid, []).append(resident)
            time.sleep(0.25)
        assert process.stdout and process.returncode == 0
        return seen, json.loads(process.stdout.read().splitlines()[-1])


def resident_workers(pid: int) -> list[tuple[int, int]]:
    """(process id, bytes) of each training worker below a process."""
    found = []
    for one in psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else ():
        try:
            if WORKER in " ".join(one.cmdline()[:1]):
                found.append((one.pid, one.memory_info().rss))
        except psutil.Error:
            continue
    return found


if __name__ == "__main__":
    main()
