"""Seconds of a training epoch, distft against RecTools' SASRecModel: same model, loss, batches' size and targets.

Run:  .venv/bin/python benchmarks/against_rectools.py PYTHON [ml1m|amazon-beauty]...

PYTHON is one of an environment of its own with ``rectools[torch]`` 0.19 and the same torch. The datasets are what
``distft prepare`` made of ``jobs/ml1m.yaml`` and ``jobs/amazon-beauty.yaml``, below ``runs/``. Both train a transformer
64 wide with 2 blocks, 1 head, a hidden layer of 64, dropout 0.2 and the full softmax, in batches of 128 histories, on
the latest 200 (amazon-beauty: 50) targets of each user, on all of the machine's processors: distft with a worker of
one thread each and DeepSpeed, RecTools with its threads. RecTools takes an epoch, distft four of which the first warms
up; both without validation, distft with its journal and a checkpoint. The script fails unless both train on as many
targets an epoch. Adds to ``benchmarks/results/rectools.json``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from throughput import RESULTS, ROOT, Ours, run_ranks

from distft.data.shards import load_histories
from distft.job import Job
from distft.jobfile import load_job
from distft.schema import PAD
from distft.storage import Storage

LENGTHS = {"ml1m": 200, "amazon-beauty": 50}
EPOCHS = 4
MODEL = (
    "model.dim=64", "model.num_blocks=2", "model.num_heads=1", "model.feed_forward=1", "model.dropout=0.2",
    "model.item_features=false", "train.batch_size=128", "train.windows=last",
)  # fmt: skip


def ours(job: Job, dataset: str) -> dict[str, Any]:
    """On each worker: seconds of every epoch, and the targets of one."""
    loop = Ours(job, Storage(dataset), torch.device("cpu"))
    seconds = []
    for _ in range(EPOCHS):
        dist.barrier()
        seconds.append(loop.epoch())
    steps = loop.loop.reader.steps_per_epoch
    batches = (batch for step in range(steps) for batch in loop.loop._step_batches(0, step))
    found = {"seconds": seconds, "targets": sum(int((batch.target_BL != PAD).sum()) for batch in batches)}
    loop.close()
    return {**found, "steps": steps}


def theirs(python: str, dataset: str, length: int, folder: str) -> dict[str, Any]:
    """RecTools' epoch on the same training events, in their order."""
    histories = load_histories(Storage(dataset), "train")
    user = np.repeat(histories.user_row, histories.lengths)
    path = Path(folder) / "interactions.npz"
    np.savez(path, user=user, item=histories.item_row)
    settings = {
        "n_blocks": 2, "n_heads": 1, "n_factors": 64, "dropout_rate": 0.2, "session_max_len": length,
        "batch_size": 128, "loss": "softmax", "lr": 1e-3,
    }  # fmt: skip
    script = str(ROOT / "benchmarks" / "direct" / "with_rectools.py")
    done = subprocess.run([python, script, str(path), json.dumps(settings)], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return found


def compare(name: str, python: str) -> dict[str, Any]:
    dataset, length, workers = str(ROOT / "runs" / name / "dataset"), LENGTHS[name], os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        more = (f"storage={folder}/run", f"model.max_history={length}", f"scaling.num_workers={workers}")
        job = load_job(str(ROOT / "jobs" / f"{name}.yaml"), (*MODEL, *more))
        ranks = run_ranks(workers, ours, job, dataset)
        print(name, ranks, file=sys.stderr, flush=True)
        other = theirs(python, dataset, length, folder)
    targets = sum(rank["targets"] for rank in ranks)
    if targets != other["targets"]:
        raise SystemExit(f"{name}: distft trains on {targets} targets, RecTools on {other['targets']}")
    epochs = [max(rank["seconds"][number] for rank in ranks) for number in range(EPOCHS)]
    median = statistics.median(epochs[1:])
    return {
        "targets_per_epoch": targets,
        "distft_epoch_s": [round(seconds, 2) for seconds in epochs],
        "distft_workers": workers,
        "rectools": other,
        "speed_ratio": round(other["epoch_s"] / median, 2),
    }


def main() -> None:
    python, *names = sys.argv[1:]
    path = RESULTS / "rectools.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in names or LENGTHS:
        load = [round(value, 1) for value in os.getloadavg()]
        found[name] = {**compare(name, python), "machine": {"cpus": os.cpu_count(), "load_before": load}}
        path.write_text(json.dumps(found, indent=2) + "\n")
        print(name, json.dumps(found[name]))


if __name__ == "__main__":
    main()
