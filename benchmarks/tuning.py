"""Whether a search finds what a whole grid finds, for less; and what it costs outside the training.

Run:  .venv/bin/python benchmarks/tuning.py FOLDER grid
      .venv/bin/python benchmarks/tuning.py FOLDER search [SEED ...]
      .venv/bin/python benchmarks/tuning.py FOLDER long
      .venv/bin/python benchmarks/tuning.py FOLDER

``grid`` runs 6 learning rates by 4 batch sizes to their last epoch, ``search`` the search of the job as it is (for each
SEED; 1), ``long`` four trials that take two minutes or more on the average. All by ``distft tune`` below FOLDER; what
was killed goes on. Without a word they are told of, and the search is replayed: the same rules (``tune/search.py``,
``tune/halving.py``) choose among the points of the grid, whose curves and seconds are known, with NUM_REPLAYS seeds,
and with a later first judgement. The share of seconds is of those that trainers spent on steps and validations;
overhead is what the search's time has beside them, where two trials run at a time.

Only the validation split is looked at, but by ``distft tune`` itself when it ends (``tune/gain.py``). Needs ``distft
data fetch ml-100k``. Writes ``benchmarks/results/tuning.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from distft.job import Job
from distft.jobfile import load_job
from distft.storage import Storage
from distft.tune import search
from distft.tune.halving import ends_at, rungs
from distft.tune.ledger import Ledger, Trial
from distft.tune.search import Told

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
JOB = RESULTS / "tuning.yaml"
RATES = [1e-4, 2.5e-4, 6.3e-4, 1.6e-3, 4e-3, 1e-2]
BATCHES = [32, 64, 128, 256]
ON_GRID = {"train.learning_rate": {"choice": RATES}, "train.batch_size": {"choice": BATCHES}}
GRID = ["tune.algorithm=grid", "tune.asha=null", f"tune.search={json.dumps(ON_GRID)}"]
LONG = [
    "tune.num_trials=4",
    "tune.asha=null",
    "train.epochs=24",
    'tune.search={"train.learning_rate": {"loguniform": [1.0e-3, 2.0e-3]}, "train.batch_size": {"choice": [32, 64]}}',
]
LAG = 3
"""Two trials run at a time, so that a trial knows of those that are three before it."""
NUM_REPLAYS = 200
WITHIN = 0.02


def run(folder: Path, name: str, sets: list[str]) -> None:
    """``distft tune``, on the dataset that all searches share."""
    words = [word for one in sets for word in ("--set", one)]
    for stage in ("prepare", "tune"):
        command = [sys.executable, "-m", "distft", stage, str(JOB), "--storage", str(folder / name), *words]
        subprocess.run(command, cwd=ROOT, check=True)
    (folder / name / "load.json").write_text(json.dumps({"load_average": os.getloadavg()[0], "ended": time.ctime()}))


def told(folder: Path, name: str) -> dict[str, Any] | None:
    """What a finished search says of itself; None where it has not been run."""
    root = Storage(str(folder / name / "tune"))
    manifest = root.manifest("tune") if root.exists("manifest.json") else None
    if manifest is None or manifest.info.get("status") != "finished":
        return None
    keys = ("num_trials", "by_status", "best", "own", "seconds", "concurrent", "train_s", "valid_s", "overhead_share")
    return {**{key: manifest.info[key] for key in keys}, **json.loads((folder / name / "load.json").read_text())}


def trials_of(folder: Path, name: str) -> list[Trial]:
    """The trials of a search."""
    ledger = Ledger(Storage(str(folder / name / "tune")), "ndcg@10")
    return [trial for _, trial in sorted(ledger.trials.items())]


def replay(job: Job, grid: dict[tuple[float, int], Trial]) -> tuple[float, float]:
    """(best value found, seconds of trainers) of a search among the points of the grid."""
    trials: list[Told] = []
    best, seconds, epochs = 0.0, 0.0, job.train.epochs
    for number in range(search.num_trials(job)):
        known = trials[: max(0, number - LAG + 1)]
        running = [Told(one.values, (), ended=False, complete=False) for one in trials[len(known) :]]
        values = search.suggest(job, number, [*known, *running], lower=False)
        whole = grid[values["train.learning_rate"], values["train.batch_size"]]
        peers = [one.curve or () for one in trials]
        # As the Leader does: the job's own values are never ended early.
        last = ends_at(whole.curve, peers, job.tune.asha, epochs, False) if job.tune.asha and number else None
        curve = tuple(one for one in whole.curve if last is None or one[0] <= last)
        trials.append(Told(values, curve, ended=True, complete=last is None))
        best = max(best, *(value for _, value in curve))
        seconds += (whole.train_s + whole.valid_s) * len(curve) / len(whole.curve)
    return best, seconds


def replays(grid: list[Trial]) -> list[dict[str, Any]]:
    """How often searches with other settings find a value near the best one of the grid, and for what share of time."""
    points = {(one.values["train.learning_rate"], one.values["train.batch_size"]): one for one in grid}
    top = max(one.best_value or 0.0 for one in grid)
    all_s = sum(one.train_s + one.valid_s for one in grid)
    found = []
    for min_epochs, factor in ((1, 3), (2, 3)):
        runs = []
        for seed in range(NUM_REPLAYS):
            rule = json.dumps({"min_epochs": min_epochs, "reduction_factor": factor})
            sets = [f"tune.search={json.dumps(ON_GRID)}", f"tune.asha={rule}", f"tune.seed={seed}"]
            runs.append(replay(load_job(str(JOB), sets), points))
        values, seconds = np.array(runs).T
        line = {
            "num_random": search.NUM_RANDOM,
            "min_epochs": min_epochs,
            "reduction_factor": factor,
            "rungs": list(rungs(load_job(str(JOB), [f"tune.asha={rule}"]).tune.asha, 10)),  # type: ignore[arg-type]
            "share_within": float((values >= top * (1 - WITHIN)).mean()),
            "mean_seconds_share": float(seconds.mean() / all_s),
            "most_seconds_share": float(seconds.max() / all_s),
        }
        print(json.dumps(line), flush=True)
        found.append(line)
    return found


def main() -> None:
    """Runs what the command line names."""
    if len(sys.argv) < 2 or sys.argv[2:3] not in ([], ["grid"], ["search"], ["long"]):
        sys.exit(__doc__)
    folder, words = Path(sys.argv[1]).absolute(), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    if words[:1] == ["grid"]:
        run(folder, "grid", GRID)
    elif words[:1] == ["long"]:
        run(folder, "long", LONG)
    elif words:
        for seed in words[1:] or ["1"]:
            run(folder, f"search-{seed}", [f"tune.seed={seed}"])
    else:
        tell(folder)


def tell(folder: Path) -> None:
    """Writes the result."""
    trials = trials_of(folder, "grid")
    top = max(one.best_value or 0.0 for one in trials)
    all_s = sum(one.train_s + one.valid_s for one in trials)
    points = [
        {
            "learning_rate": one.values["train.learning_rate"],
            "batch_size": one.values["train.batch_size"],
            "ndcg@10": one.best_value,
            "epoch": one.best_epoch,
            "seconds": round(one.train_s + one.valid_s, 1),
        }
        for one in trials
    ]
    searches = []
    for path in sorted(folder.glob("search-*")):
        summary = told(folder, path.name)
        if summary is not None:
            share = (summary["train_s"] + summary["valid_s"]) / all_s
            searches.append(
                {
                    "seed": int(path.name.rpartition("-")[2]),
                    "best_against_grid": summary["best"]["value"] / top,
                    "seconds_share": share,
                    **summary,
                }
            )
    result = {
        "grid": {"best": top, "trainer_seconds": round(all_s, 1), **(told(folder, "grid") or {}), "points": points},
        "searches": searches,
        "long": told(folder, "long"),
        "replays": replays(trials),
    }
    text = json.dumps(result, indent=2) + "\n"
    (RESULTS / "tuning.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
