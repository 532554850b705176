"""The whole path as a user starts it: wall time, peak memory of the process tree, and what came out.

Run:  .venv/bin/python benchmarks/path.py NAME [-- COMMAND...]

NAME is one of ``answers`` (``distft --help`` and ``distft check``, median of five), ``quickstart`` (what ``make run``
does, after installation, in an empty storage), or a shipped job, such as ``ml1m``, ``online-retail``, ``jdata`` or
``classic-mlp`` (``distft run`` of it, in an empty storage; a fine-tuning needs its base's job before). Memory is the
peak of the summed PSS of all processes that the command started, sampled at most four times a second, and in at most 5%
of the time. Writes ``benchmarks/results/NAME.json``, and the job file beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DISTFT = str(ROOT / ".venv" / "bin" / "distft")


def pss_bytes(root: psutil.Process) -> int:
    """Summed proportional set size of a process and all that it started."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def measured(command: list[str]) -> dict[str, Any]:
    """Runs a command; gives its exit code, seconds, and peak memory."""
    started_s, peak = time.perf_counter(), [0]
    process = subprocess.Popen(command, cwd=ROOT)
    watched, stop = psutil.Process(process.pid), threading.Event()

    def sample() -> None:
        pause_s = 0.25
        while not stop.wait(pause_s):
            looked_s = time.perf_counter()
            try:
                peak[0] = max(peak[0], pss_bytes(watched))
            except psutil.Error:
                return
            # The kernel walks through every page: looking must not take the time that is measured.
            pause_s = max(0.25, 20 * (time.perf_counter() - looked_s))

    thread = threading.Thread(target=sample)
    thread.start()
    code = process.wait()
    took_s = time.perf_counter() - started_s
    stop.set()
    thread.join()
    return {
        "command": " ".join(command).replace(str(ROOT) + "/", ""),
        "exit_code": code,
        "seconds": round(took_s, 1),
        "peak_pss_mb": round(peak[0] / 1e6),
    }


def seconds_of(command: list[str]) -> float:
    started_s = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started_s


def answers() -> dict[str, Any]:
    commands = {"help": [DISTFT, "--help"], "check": [DISTFT, "check", "jobs/quickstart.yaml"]}
    return {
        f"{name}_s": round(statistics.median(seconds_of(command) for _ in range(5)), 3)
        for name, command in commands.items()
    }


def job(name: str, then: list[list[str]]) -> dict[str, Any]:
    storage = ROOT / "runs" / name
    shutil.rmtree(storage, ignore_errors=True)
    runs = [measured([DISTFT, "run", f"jobs/{name}.yaml"]), *(measured(command) for command in then)]
    shutil.copy(ROOT / "jobs" / f"{name}.yaml", RESULTS / f"{name}.yaml")
    metrics = json.loads((storage / "report" / "metrics.json").read_text())
    stats = json.loads((storage / "dataset" / "stats.json").read_text())
    (best_file,) = [*storage.glob("train/best.json"), *storage.glob("finetune/best.json")]
    best = json.loads(best_file.read_text())
    return {
        "runs": runs,
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        "peak_pss_mb": max(run["peak_pss_mb"] for run in runs),
        "validation": {name: best[name] for name in ("epoch", "metric", "value")},
        "test": {name: metrics[name] for name in ("num_targets", "unknown_target_share", "exclude_seen", "intervals")},
        "metrics": {"model": metrics["model"], **metrics["baselines"]},
        "pointwise": metrics.get("pointwise"),
        "significance": metrics["significance"],
        "rows": {name: stats[name] for name in ("rows_in", "kept", "rejected", "filtered")},
    }


def main() -> None:
    name = sys.argv[1]
    probe = [[DISTFT, "serve", "runs/quickstart/bundle", "--probe"]] if name == "quickstart" else []
    result = answers() if name == "answers" else job(name, probe)
    result["machine"] = {"cpus": os.cpu_count(), "load_before": [round(load, 1) for load in LOAD]}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


LOAD = os.getloadavg()

if __name__ == "__main__":
    main()
