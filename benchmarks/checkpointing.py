"""What a checkpoint costs the training, and what kills in the midst of one leave.

Run:  .venv/bin/python benchmarks/checkpointing.py time [WORKERS]
      .venv/bin/python benchmarks/checkpointing.py kills

``time``: a training of 27 million parameters (100,000 items, AdamW: a checkpoint of 326 MB), on WORKERS (without: first
one, then two) plain processes of one thread that share a gloo group, takes stretches of 50 steps in turns: without a
checkpoint, with one saved behind the training, with one that it waits for. A stretch begins with its checkpoint and
ends when that is committed, so all of its cost is counted. The turns are taken in both orders. The batches are small,
and so the steps short, for a model of this size: nothing hides the cost. Writes
``benchmarks/results/checkpointing.json``; its job file is ``checkpointing.yaml``.

``kills``: 50 times SIGKILL of a rank inside a checkpoint (see tests/train/kills.py), 30 with one rank and 20 with two.
Writes ``benchmarks/results/checkpoint-kills.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the processes and the batches that the tests use too

from distft.data.collate import train_batch  # noqa: E402
from distft.jobfile import load_job  # noqa: E402
from distft.schema import NUM_RESERVED, Batch, Catalog, Histories  # noqa: E402
from distft.sections.train import Checkpoint as Rules  # noqa: E402
from distft.storage import Storage  # noqa: E402
from distft.train.checkpoint import FOLDER, Progress, committed  # noqa: E402
from distft.train.engine import Engine  # noqa: E402
from distft.train.saving import Saver  # noqa: E402
from distft.train.step import Step, train_step  # noqa: E402
from tests.train.kills import kill  # noqa: E402
from tests.train.ranks import group, run_ranks  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
JOB = RESULTS / "checkpointing.yaml"
NUM_ITEMS, STEPS, ROUNDS = 100_000, 50, 3
WAYS = ("none", "asynchronous", "waited for")


def drawn_batch(rows: int, length: int, seed: int, num_items: int = NUM_ITEMS) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    events = rows * length
    items = torch.randint(NUM_RESERVED, num_items, (events,), generator=draw).numpy()
    histories = Histories(
        offsets=(torch.arange(rows + 1) * length).numpy(),
        item_row=items.astype("int32"),
        event=torch.ones(events, dtype=torch.int8).numpy(),
        time_ms=(torch.arange(events) * 60_000).numpy(),
        query_offsets=torch.zeros(events + 1, dtype=torch.int64).numpy(),
        query_tokens=torch.zeros(0, dtype=torch.int64).numpy(),
        user_row=torch.arange(rows, dtype=torch.int32).numpy(),
        value=torch.ones(events).numpy(),
    )
    return train_batch(histories, length, True, (1,))


def stretches(folder: str, rounds: int) -> dict[str, Any]:
    """On each rank: milliseconds a step of every stretch, by way; and how long the steps stood still for the copy."""
    job = load_job(str(JOB), ())
    catalog = Catalog(num_items=NUM_ITEMS, num_events=2, num_query_tokens=2, has_clock=True)
    torch.manual_seed(1)
    model = job.model.build(catalog)
    engine = Engine(Step(model, job.loss.build(catalog, model.state_dim)), job.train, torch.device("cpu"))
    rows = job.train.batch_size // engine.world_size
    batches = [drawn_batch(rows, job.model.max_history, 10 * seed + engine.rank) for seed in range(8)]
    empty, progress, storage = drawn_batch(0, job.model.max_history, 0), Progress(), Storage(folder)
    saver = Saver(storage, engine, job.train.checkpoint)
    took_ms: dict[str, list[float]] = {way: [] for way in WAYS}
    copied_ms: list[float] = []

    def stretch(way: str) -> float:
        dist.barrier()
        started_s = time.perf_counter()
        if way != "none":
            saver.rules = Rules(asynchronous=way == "asynchronous")
            saver.save(progress)
            if way == "asynchronous":
                copied_ms.append(1000 * (time.perf_counter() - started_s))
        for _ in range(STEPS):
            train_step(engine, [batches[progress.step % len(batches)]], empty, progress.step, 1e-3)
            progress.step += 1
            saver.poll()
        saver.drain()
        dist.barrier()
        return 1000 * (time.perf_counter() - started_s) / STEPS

    stretch("asynchronous")  # the first one also makes the optimiser's state, and the room for the copy
    copied_ms.clear()
    for number in range(rounds):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            took_ms[way].append(stretch(way))
    size = sum(path.stat().st_size for path in (storage.path / FOLDER / committed(storage / FOLDER)[0]).iterdir())
    parameters = sum(tensor.numel() for tensor in engine.parameters.values())
    saver.close()
    return {"took_ms": took_ms, "copied_ms": copied_ms, "checkpoint_mb": size / 1e6, "parameters": parameters}


def timed(workers: int) -> dict[str, Any]:
    folder = ROOT / "runs" / "checkpointing"
    shutil.rmtree(folder, ignore_errors=True)
    first = run_ranks(workers, stretches, str(folder), ROUNDS)[0]
    shutil.rmtree(folder)
    step_ms = {way: statistics.median(values) for way, values in first["took_ms"].items()}
    return {
        "workers": workers,
        "threads_per_worker": 1,
        "parameters": first["parameters"],
        "checkpoint_mb": round(first["checkpoint_mb"]),
        "steps_per_checkpoint": STEPS,
        "ms_per_step": {way: round(value, 1) for way, value in step_ms.items()},
        "all_ms_per_step": {way: [round(value, 1) for value in values] for way, values in first["took_ms"].items()},
        "added": {way: round(step_ms[way] / step_ms["none"] - 1, 4) for way in WAYS[1:]},
        "copy_ms": round(statistics.median(first["copied_ms"]), 1),
    }


def killed() -> dict[str, Any]:
    tallies = {}
    for ranks, count in ((1, 30), (2, 20)):
        with tempfile.TemporaryDirectory() as place, group(0, 1, place):
            tallies[f"{ranks} ranks"] = asdict(kill(Path(place), ranks, count, seed=ranks))
    return {**tallies, **{name: sum(tally[name] for tally in tallies.values()) for name in ("kills", "intact")}}


def main() -> None:
    what, *workers = sys.argv[1:]
    name = {"time": "checkpointing", "kills": "checkpoint-kills"}[what]
    path = RESULTS / f"{name}.json"
    machine = {"cpus": os.cpu_count(), "load_before": [round(load, 1) for load in os.getloadavg()]}
    if what == "kills":
        result = {**killed(), "machine": machine}
    else:
        result = json.loads(path.read_text()) if path.exists() else {}
        for number in workers or ("1", "2"):
            result[f"{number} workers"] = {**timed(int(number)), "machine": machine}
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
