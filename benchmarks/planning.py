"""What ``distft plan`` says of a worker's memory against what it takes: three sizes, every ZeRO stage, two workers.

Run:  .venv/bin/python benchmarks/planning.py [SIZE ...]

Each setting trains three steps of two micro-batches on two processes of one thread that share a gloo group, with a
checkpoint after the second: the real engine, step and saver. Memory is the kernel's peak of a process's resident set
(VmHWM, set back by /proc/self/clear_refs) above that of the same process when it has imported everything and trained a
toy; nothing is shared between the processes beyond that. The larger of the two ranks counts. The items are drawn
evenly, histories are full. Settings that are in the result already are not measured again, so that a run may be ended
and gone on with. Writes ``benchmarks/results/planning.json``; its job file is ``planning.yaml``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the processes that the tests use too

from distft.job import Job  # noqa: E402
from distft.jobfile import load_job  # noqa: E402
from distft.plan.passes import full_batch  # noqa: E402
from distft.plan.planning import known_catalog, planned  # noqa: E402
from distft.schema import Catalog  # noqa: E402
from distft.storage import Storage  # noqa: E402
from distft.train.checkpoint import Progress  # noqa: E402
from distft.train.engine import Engine  # noqa: E402
from distft.train.saving import Saver  # noqa: E402
from distft.train.step import Step, train_step  # noqa: E402
from tests.train.ranks import run_ranks  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
WORKERS = 2
TOY = ("model.dim=8", "model.num_blocks=1", "model.num_heads=2")
SIZES = {
    "8m": (20_000, 1600, ("model.dim=256", "model.num_blocks=4", "model.num_heads=4")),
    "39m": (40_000, 800, ("model.dim=512", "model.num_blocks=6", "model.num_heads=8")),
    "100m": (20_000, 400, ("model.dim=768", "model.num_blocks=12", "model.num_heads=12")),
}
"""Name → items, tokens of a micro-batch, the model."""


def job_of(name: str, stage: int) -> Job:
    items, tokens, model = SIZES[name]
    rows = 2 * WORKERS * tokens // 100
    more = (f"train.zero.stage={stage}", f"train.max_tokens_per_micro_batch={tokens}", f"train.batch_size={rows}")
    return load_job(str(RESULTS / "planning.yaml"), [f"data.events.0.num_items={items}", *model, *more])


def memory(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def trained(job: Job, catalog: Catalog, num_steps: int, num_micro: int) -> None:
    """Trains some steps, with a checkpoint before the last one."""
    torch.manual_seed(job.seed)
    model = job.model.build(catalog)
    engine = Engine(Step(model, job.loss.build(catalog, model.state_dim)), job.train, torch.device("cpu"))
    del model
    length = job.model.max_history
    rows, empty = job.train.max_tokens_per_micro_batch // length, full_batch((0, length), catalog)
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Storage(folder), engine, job.train.checkpoint)
        for step in range(num_steps):
            if step == num_steps - 1:
                saver.save(Progress(step=step))
            batches = [full_batch((rows, length), catalog, 100 * step + 10 * number) for number in range(num_micro)]
            train_step(engine, batches, empty, step, 1e-4)
        saver.drain()
        saver.close()
    engine.close()


def measured(job: Job, catalog: Catalog) -> int:
    """Bytes of this rank's peak above its baseline."""
    toy = load_job(str(RESULTS / "planning.yaml"), [*TOY, f"train.zero.stage={job.train.zero.stage}"])
    trained(toy, known_catalog(toy, None, 50)[0], 2, 2)  # type: ignore[index]
    gc.collect()
    before = memory("VmRSS")
    reset_peak()
    trained(job, catalog, 3, 2)
    return memory("VmHWM") - before


def main() -> None:
    path = RESULTS / "planning.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"settings": {}}
    for name in sys.argv[1:] or SIZES:
        for stage in range(4):
            key = f"{name}, zero {stage}"
            if key in found["settings"]:
                continue
            job = job_of(name, stage)
            catalog = known_catalog(job, None)[0]  # type: ignore[index]
            plan = planned(job, catalog, WORKERS, None, False)
            peak = max(run_ranks(WORKERS, measured, job, catalog))
            told = plan.wanted.memory
            found["settings"][key] = {
                "parameters": plan.measured.num_trained,
                "planned_mb": round(told.device_bytes / 1e6, 1),
                "measured_mb": round(peak / 1e6, 1),
                "ratio": round(told.device_bytes / peak, 3),
                "planned_parts_mb": {part: round(size / 1e6, 1) for part, size in {**told.device, **told.host}.items()},
                "planned_start_mb": round(told.start_device / 1e6, 1),
            }
            print(key, json.dumps(found["settings"][key]), flush=True)
            ratios = [one["ratio"] for one in found["settings"].values()]
            found["worst_ratio"] = max(ratios, key=lambda ratio: abs(ratio - 1))
            found["machine"] = {"cpus": os.cpu_count(), "workers": WORKERS}
            path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
