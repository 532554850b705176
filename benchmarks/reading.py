"""Training workers read shards themselves, against Ray Train dataset shards: the same rows, the same collation.

Run:  .venv/bin/python benchmarks/reading.py runs/ml1m/dataset        (a dataset made by ``distft prepare``)

Two workers read three epochs in batches of 64 rows each. Measured for each way, in one run on one machine: the time
from the start of an epoch to its first batch, rows per second once it flows, whether both ranks get equally many
batches, and whether a reader that starts in the middle of an epoch gives the same batches as one that ran through.
Writes ``benchmarks/results/reading.json``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
import ray.train.collective
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from distft import cluster
from distft.data import ragged
from distft.data.collate import train_batch
from distft.data.encode import Encoder
from distft.data.shards import TrainReader
from distft.storage import Storage

BATCH_ROWS, EPOCHS, MAX_HISTORY = 64, 3, 200


def batches_of_ours(dataset: Storage, epoch: int) -> Iterator[Any]:
    context = ray.train.get_context()
    reader = TrainReader(
        dataset,
        seed=1,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        batch_size=BATCH_ROWS * context.get_world_size(),
        max_history=MAX_HISTORY,
    )
    for step in range(reader.steps_per_epoch):
        yield reader.step_rows(epoch, step)


def batches_of_ray(dataset: Storage, epoch: int) -> Iterator[Any]:
    shard = ray.train.get_dataset_shard("train")
    options = {"local_shuffle_buffer_size": 4 * BATCH_ROWS, "local_shuffle_seed": epoch}
    for table in shard.iter_batches(batch_size=BATCH_ROWS, batch_format="pyarrow", **options):
        yield ragged.from_table(table)


def worker(config: dict[str, Any]) -> list[dict[str, Any]]:
    """One rank: reads the epochs, collates every batch, and tells what it saw."""
    dataset = Storage(config["dataset"])
    encoder = Encoder.of_dataset(dataset)
    ways = {"distft": batches_of_ours, "ray": batches_of_ray}
    seen = []
    for epoch in range(EPOCHS):
        started_s = time.perf_counter()
        first_s, rows, batches = 0.0, 0, []
        for histories in ways[config["way"]](dataset, epoch):
            train_batch(histories, MAX_HISTORY, encoder.has_clock, encoder.target_codes)
            first_s = first_s or time.perf_counter() - started_s
            rows += len(histories)
            batches.append(hashlib.sha256(histories.user_row.tobytes()).hexdigest()[:12])
        total_s = time.perf_counter() - started_s
        record = {"epoch": epoch, "first_s": first_s, "total_s": total_s, "rows": rows, "batches": batches}
        seen.append(record)
    everyone = ray.train.collective.broadcast_from_rank_zero(seen)
    ray.train.report(
        {"parity": [len(mine["batches"]) == len(zero["batches"]) for mine, zero in zip(seen, everyone, strict=True)]}
    )
    return seen


def measure(way: str, path: str, scratch: str) -> dict[str, Any]:
    """Runs the workers one way, twice: the second run shows whether the order can be repeated."""
    runs = []
    for _ in range(2):
        datasets = {"train": ray.data.read_parquet(f"{path}/train")} if way == "ray" else None
        trainer = TorchTrainer(
            worker,
            train_loop_config={"way": way, "dataset": path},
            datasets=datasets,
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=scratch, name=f"{way}-{time.time_ns()}"),
        )
        runs.append(trainer.fit().return_value)
    epochs = runs[0]
    return {
        "first_batch_s": [round(epoch["first_s"], 3) for epoch in epochs],
        "rows_per_s_after_first": [
            round((epoch["rows"] - BATCH_ROWS) / max(1e-9, epoch["total_s"] - epoch["first_s"])) for epoch in epochs
        ],
        "epoch_s": [round(epoch["total_s"], 3) for epoch in epochs],
        "rows_of_rank_0": [epoch["rows"] for epoch in epochs],
        "same_order_when_run_again": [a["batches"] == b["batches"] for a, b in zip(*runs, strict=True)],
        "fixed_rows_per_rank": len({epoch["rows"] for run in runs for epoch in run}) == 1,
    }


def main() -> None:
    path = Storage(sys.argv[1]).uri
    scratch = Path("/tmp/distft-reading")
    with cluster.connect(num_cpus=4):
        result = {way: measure(way, path, str(scratch)) for way in ("distft", "ray")}
    result["command"] = "benchmarks/reading.py " + sys.argv[1]
    out = Path(__file__).parent / "results" / "reading.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
