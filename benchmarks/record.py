"""The record jobs as shipped, over three seeds, beside the best published figures on the same files.

Run:  .venv/bin/python benchmarks/record.py ml1m|beauty|beauty-ids [SEED...]

Each seed (without: 1, 2 and 3) is one ``distft run`` in an empty storage, and its test split is looked at once, at the
end; settings were chosen on the validation split. ``minutes`` is the whole run, from the raw file to the bundle, and
``minutes_training`` the part of it until the weights that are taken had been trained: by one worker of one thread,
while another run may use the other processor (``load_before``). Published figures are as their papers give them.

Adds the seeds to ``benchmarks/results/record-NAME.json``; its job file lies beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DISTFT = str(ROOT / ".venv" / "bin" / "distft")
SEEDS = (1, 2, 3)
METRICS = ("recall@10", "ndcg@10", "recall@5", "ndcg@5", "recall@20", "ndcg@20")


@dataclass(frozen=True)
class Case:
    """A job, what is set otherwise, and the best published recall@10 and ndcg@10 with their source."""

    job: str
    changes: tuple[str, ...]
    published: dict[str, tuple[float, float]]


PUBLISHED_BEAUTY = {"eSASRec": (0.0928, 0.0523), "SASRec, sampled softmax": (0.0921, 0.0531)}
CASES = {
    "ml1m": Case(
        "ml1m-record",
        (),
        {"SASRec, 3,000 negatives": (0.3159, 0.1857), "SASRec, full softmax": (0.3152, 0.1821)},
    ),
    "beauty": Case("beauty-record", (), PUBLISHED_BEAUTY),
    "beauty-ids": Case("beauty-record", ("model.item_features=false",), PUBLISHED_BEAUTY),
}


def run(name: str, seed: int) -> dict[str, Any]:
    """One seed, from the raw file to the bundle."""
    case, storage = CASES[name], ROOT / "runs" / f"record-{name}-{seed}"
    shutil.rmtree(storage, ignore_errors=True)
    command = [DISTFT, "run", f"jobs/{case.job}.yaml", "--storage", str(storage)]
    for change in (f"seed={seed}", *case.changes):
        command += ["--set", change]
    load, started = round(os.getloadavg()[0], 1), time.time()
    subprocess.run(command, cwd=ROOT, check=True)
    ended = time.time()
    metrics = json.loads((storage / "report" / "metrics.json").read_text())
    best = json.loads((storage / "train" / "best.json").read_text())
    trained_s = (storage / "train" / best["checkpoint"] / "manifest.json").stat().st_mtime
    return {
        "command": " ".join(["distft", *command[1:3], *command[5:]]),
        "validation": {name: best[name] for name in ("epoch", "step", "metric", "value")},
        "test": {name: round(metrics["model"][name], 5) for name in METRICS},
        "intervals": {name: metrics["intervals"][name] for name in METRICS[:2]},
        "num_targets": metrics["num_targets"],
        "minutes": round((ended - started) / 60, 1),
        "minutes_training": round((trained_s - started) / 60, 1),
        "load_before": load,
    }


def summary(seeds: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation of each metric over the seeds."""
    found = {}
    for name in METRICS:
        values = [seed["test"][name] for seed in seeds.values()]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found[name] = {"mean": round(statistics.mean(values), 5), "deviation": round(spread, 5)}
    return found


def main() -> None:
    name, *more = sys.argv[1:]
    case, path = CASES[name], RESULTS / f"record-{name}.json"
    shutil.copy(ROOT / "jobs" / f"{case.job}.yaml", RESULTS / f"{case.job}.yaml")
    for seed in [int(value) for value in more] or SEEDS:
        line = run(name, seed)
        result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"seeds": {}}
        result["seeds"][str(seed)] = line
        result["seeds"] = dict(sorted(result["seeds"].items()))
        result["test"] = summary(result["seeds"])
        result["published"] = {
            source: dict(zip(METRICS[:2], both, strict=True)) for source, both in case.published.items()
        }
        result["machine"] = {"cpus": os.cpu_count()}
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result["test"], indent=2))


if __name__ == "__main__":
    main()
