"""What state in files saves and costs: memory of a training process and seconds a step, for each offload.

Run:  .venv/bin/python benchmarks/offload.py [FOLDER]

A transformer 768 wide of 12 blocks with 20,000 items (100 M parameters) in bf16 at ZeRO 2 and 3, one process, AdamW,
8 histories of 50 events a step, so that the update is most of it; each setting in a process of its own. FOLDER
(without: ``runs/offload``) is where state rests. Memory is the proportional set size after the last step, less that of
the process before the model was made. Files keep what the system's page cache has room for, so that the time is that of
a machine with free memory; where it has none, a step reads and writes 12 bytes for each parameter.
Writes ``benchmarks/results/offload.json``.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the process group that the tests use too

from checkpointing import drawn_batch  # noqa: E402

from distft.losses.sampled_softmax.config import Config as SampledSoftmax  # noqa: E402
from distft.models.transformer.config import Config as Transformer  # noqa: E402
from distft.schema import Catalog  # noqa: E402
from distft.sections.train import Train  # noqa: E402
from distft.train.engine import Engine  # noqa: E402
from distft.train.step import Step, train_step  # noqa: E402
from tests.train.ranks import group  # noqa: E402

NUM_ITEMS, ROWS, LENGTH, STEPS = 20_000, 8, 50, 6


def memory_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_full_info().pss)


def measured(zero: dict[str, Any], told: Any) -> None:
    with tempfile.TemporaryDirectory() as folder, group(0, 1, folder):
        torch.manual_seed(1)
        train = Train.model_validate({"precision": "bf16", "zero": zero})
        catalog = Catalog(num_items=NUM_ITEMS, num_events=2, num_query_tokens=2, has_clock=True)
        before = memory_bytes()
        model = Transformer(dim=768, num_blocks=12, num_heads=12).build(catalog)
        engine = Engine(Step(model, SampledSoftmax().build(catalog, model.state_dim)), train, torch.device("cpu"))
        num_parameters = sum(len(part.view(part.master)) for part in engine.slices())
        del model
        empty, seconds, losses = drawn_batch(0, LENGTH, 0, NUM_ITEMS), [], []
        for step in range(STEPS):
            started = time.perf_counter()
            losses.append(train_step(engine, [drawn_batch(ROWS, LENGTH, step, NUM_ITEMS)], empty, step, 1e-4).loss_sum)
            seconds.append(time.perf_counter() - started)
        told.put(
            {
                **{key: value for key, value in zero.items() if key != "nvme_path"},
                "parameters": num_parameters,
                "memory_mb": round((memory_bytes() - before) / 1e6),
                "bytes_per_parameter": round((memory_bytes() - before) / num_parameters, 1),
                "seconds_per_step": round(statistics.median(seconds[1:]), 2),
                "last_loss": losses[-1],
            }
        )


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "runs" / "offload")
    context = multiprocessing.get_context("spawn")
    results: list[dict[str, Any]] = []
    for stage in (2, 3):
        for offload in ("none", "cpu", "nvme"):
            zero = {"stage": stage, "offload": offload, **({"nvme_path": folder} if offload == "nvme" else {})}
            told = context.Queue()
            process = context.Process(target=measured, args=(zero, told))
            process.start()
            results.append(told.get(timeout=600))
            process.join()
            print(json.dumps(results[-1]), flush=True)
        assert len({one["last_loss"] for one in results if one["stage"] == stage}) == 1, "another training"
    found = {
        "settings": results,
        "machine": {"cpus": os.cpu_count(), "load_before": [round(load, 1) for load in LOAD]},
    }
    (ROOT / "benchmarks" / "results" / "offload.json").write_text(json.dumps(found, indent=2) + "\n")


LOAD = os.getloadavg()

if __name__ == "__main__":
    main()
