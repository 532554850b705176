"""A table of items that is shared out among four workers: what each holds, and how fast it trains.

Run:  .venv/bin/python benchmarks/sharded_table.py held [ROWS]
      .venv/bin/python benchmarks/sharded_table.py speed

Four processes of one thread share a gloo group on one machine and train the transformer of
``benchmarks/results/sharded_table.yaml`` (64 wide, two blocks, 32 full histories of 50 events a worker and step, 256
shared negatives, items drawn evenly) with the real engine, step and saver.

``held``: a table of ROWS (20 million) rows. What each worker holds of table and optimiser state, the peak of its
resident memory above that of the same process before, over some steps and a checkpoint that is waited for, and what
another four workers then find in that checkpoint.

``speed``: a million rows, sharded; against the same optimiser on a table that every worker has whole, whose gradient is
dense and summed over the workers; and against the table as a weight of the model under DeepSpeed (``placement:
replicated``, AdamW) at ZeRO 0 and 2. The losses of the first two must be the same. Ways take turns; the fastest of
three rounds counts, and all are kept.

Writes ``benchmarks/results/sharded_table.json``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the processes that the tests use too

from distft.job import Job  # noqa: E402
from distft.jobfile import load_job  # noqa: E402
from distft.plan.passes import full_batch  # noqa: E402
from distft.plan.planning import known_catalog, planned  # noqa: E402
from distft.schema import PAD, Catalog  # noqa: E402
from distft.storage import Storage  # noqa: E402
from distft.train.checkpoint import Progress, load_optimizer, load_weights, newest  # noqa: E402
from distft.train.engine import Engine  # noqa: E402
from distft.train.saving import Saver  # noqa: E402
from distft.train.sharded_table import EPSILON, Rule, ShardedTable  # noqa: E402
from distft.train.step import Step, train_step  # noqa: E402
from tests.train.plain_table import PlainTable  # noqa: E402
from tests.train.ranks import run_ranks  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
WORKERS = 4
CPU = torch.device("cpu")
HELD_STEPS, SPEED_STEPS, WARM_UP, ROUNDS = 6, 12, 2, 3
WAYS = {"sharded": [], "whole on every worker": [], "DeepSpeed, ZeRO 0": [], "DeepSpeed, ZeRO 2": []}
REPLICATED = "model.item_table={placement: replicated}"


def job_of(*more: str) -> Job:
    return load_job(str(RESULTS / "sharded_table.yaml"), more)


def catalog_of(job: Job, num_items: int) -> Catalog:
    known = known_catalog(job, None, num_items)
    assert known is not None
    return known[0]


class WholeTable(PlainTable):
    """The tests' plain twin without its copies: the weight is the leaf, and is updated in place."""

    def look_up(self, rows: Tensor) -> None:
        self.leaf_ND = self.weight.requires_grad_()
        self.lookup.hold(self.every_N, self.leaf_ND)

    def collect(self, divisor: float) -> Tensor:
        gradient_ND = self.leaf_ND.grad
        assert gradient_ND is not None
        gradient_ND[PAD] = 0
        dist.all_reduce(gradient_ND.div_(divisor))
        self.gradient_ND, self.leaf_ND.grad = gradient_ND, None
        return gradient_ND.norm()

    @torch.no_grad()
    def update(self, learning_rate: float, scale: float) -> None:
        self.steps += 1
        g_ND = self.gradient_ND.mul_(scale)
        self.sum_N += torch.einsum("nd,nd->n", g_ND, g_ND) / self.dim
        rate_N = learning_rate * self.rule.rate_factor / (self.sum_N.sqrt() + EPSILON)
        self.weight.addcmul_(g_ND, rate_N[:, None], value=-1)


def engine_of(job: Job, catalog: Catalog, whole: bool = False) -> tuple[Engine, Step]:
    """The engine as a worker's loop makes it; ``whole``: with the twin in the place of the sharded table."""
    section = job.model.item_table
    torch.manual_seed(job.seed)
    catalog = replace(catalog, has_item_table=not section.is_sharded)
    model = job.model.build(catalog)
    module = Step(model, job.loss.build(catalog, model.state_dim))
    if whole:
        table: Any = WholeTable("items.items", model.items.items, Rule.of(section, job.train), job.seed)
        table.every_N = torch.arange(table.num_rows)
        table.mean_ND = table.square_ND = None  # of adamw
        module.table = table
    elif section.is_sharded:
        module.table = ShardedTable.of(model, section, job.train, job.seed, CPU)
    return Engine(module, job.train, CPU), module


def one_step(engine: Engine, job: Job, catalog: Catalog, step: int) -> float:
    """Mean loss of a step on histories that differ by rank and step."""
    length = job.model.max_history
    rows = job.train.batch_size // WORKERS
    batch = full_batch((rows, length), catalog, 1000 * step + engine.rank)
    result = train_step(engine, [batch], full_batch((0, length), catalog), step, job.train.learning_rate)
    return result.loss_sum / result.count


# -- held ----------------------------------------------------------------------------------------------------------


def memory(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def held(job: Job, num_items: int, folder: str) -> dict[str, Any]:
    engine, _ = engine_of(job, catalog_of(job, 5000))
    one_step(engine, job, catalog_of(job, 5000), 0)
    engine.close()
    del engine
    gc.collect()
    dist.barrier()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    catalog = catalog_of(job, num_items)
    started = time.perf_counter()
    engine, _ = engine_of(job, catalog)
    started_s = time.perf_counter() - started
    table = engine.table
    assert table is not None
    seconds = []
    for step in range(HELD_STEPS):
        started = time.perf_counter()
        one_step(engine, job, catalog, step)
        seconds.append(time.perf_counter() - started)
    peak = memory("VmHWM") - before
    started = time.perf_counter()
    saver = Saver(Storage(folder), engine, job.train.checkpoint)
    saver.save(Progress(step=HELD_STEPS))
    saver.drain()
    saver.close()
    saved_s = time.perf_counter() - started
    return {
        "rows": table.num_held,
        "bytes": sum(values.numel() * values.element_size() for _, values in table.held()),
        "resident_peak_bytes": peak,
        "resident_peak_with_checkpoint_bytes": memory("VmHWM") - before,
        "start_s": round(started_s, 1),
        "step_s": round(min(seconds), 3),
        "checkpoint_s": round(saved_s, 1),
        "sum": float(table.weight.double().sum()),
    }


def restored(job: Job, num_items: int, folder: str) -> dict[str, Any]:
    """What a new group finds in the checkpoint, and the peak of reading it."""
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    found = newest(Storage(folder))
    assert found is not None
    section, catalog = job.model.item_table, replace(catalog_of(job, num_items), has_item_table=False)
    model = job.model.build(catalog)
    module = Step(model, job.loss.build(catalog, model.state_dim))
    module.table = ShardedTable.of(model, section, job.train, job.seed + 1, CPU)
    weights = load_weights(found, module)
    engine = Engine(module, job.train, CPU)
    load_optimizer(found, engine, weights)
    return {
        "restore_s": round(time.perf_counter() - started, 1),
        "resident_peak_bytes": memory("VmHWM") - before,
        "sum": float(module.table.weight.double().sum()),
    }


def measure_held(num_items: int) -> dict[str, Any]:
    job = job_of()
    with tempfile.TemporaryDirectory() as folder:
        ranks = run_ranks(WORKERS, held, job, num_items, folder)
        back = run_ranks(WORKERS, restored, job, num_items, folder)
    dim = int(job.model.dim)  # type: ignore[attr-defined]
    whole = 4 * (dim + 1) * (num_items + 2)
    plan = planned(job, catalog_of(job, num_items), WORKERS, None, False)
    most = max(rank["resident_peak_bytes"] for rank in ranks)
    return {
        "rows": num_items + 2,
        "dim": dim,
        "workers": WORKERS,
        "whole_bytes": whole,
        "held_bytes": [rank["bytes"] for rank in ranks],
        "held_share": round(max(rank["bytes"] for rank in ranks) / whole, 4),
        "resident_peak_bytes": most,
        "resident_peak_share": round(most / whole, 4),
        "resident_peak_with_checkpoint_share": round(
            max(rank["resident_peak_with_checkpoint_bytes"] for rank in ranks) / whole, 4
        ),
        "planned_bytes": plan.wanted.memory.device_bytes,
        "planned_to_measured": round(plan.wanted.memory.device_bytes / most, 3),
        "seconds": {key: max(rank[key] for rank in ranks) for key in ("start_s", "step_s", "checkpoint_s")},
        "restore": {
            "seconds": max(rank["restore_s"] for rank in back),
            "resident_peak_share": round(max(rank["resident_peak_bytes"] for rank in back) / whole, 4),
            "same": sum(rank["sum"] for rank in back) == sum(rank["sum"] for rank in ranks),
        },
    }


# -- speed ---------------------------------------------------------------------------------------------------------


def speed(num_items: int) -> dict[str, dict[str, Any]]:
    """Way → losses of its steps, seconds of each."""
    found: dict[str, dict[str, Any]] = {}
    for name in WAYS:
        more = [] if "DeepSpeed" not in name else [REPLICATED, f"train.zero.stage={name[-1]}"]
        job = job_of(*more)
        catalog = catalog_of(job, num_items)
        engine, _ = engine_of(job, catalog, name == "whole on every worker")
        losses, seconds = [], []
        for step in range(SPEED_STEPS):
            dist.barrier()
            started = time.perf_counter()
            losses.append(one_step(engine, job, catalog, step))
            dist.barrier()
            seconds.append(time.perf_counter() - started)
        found[name] = {"losses": losses, "seconds": seconds[WARM_UP:]}
        engine.close()
        del engine
        gc.collect()
    return found


def measure_speed(num_items: int) -> dict[str, Any]:
    rounds = [run_ranks(WORKERS, speed, num_items)[0] for _ in range(ROUNDS)]
    rates = {name: [round(len(one[name]["seconds"]) / sum(one[name]["seconds"]), 3) for one in rounds] for name in WAYS}
    sharded, whole = (rounds[0][name]["losses"] for name in ("sharded", "whole on every worker"))
    gaps = [abs(a / b - 1) for a, b in zip(sharded, whole, strict=True)]
    best = {name: max(values) for name, values in rates.items()}
    return {
        "rows": num_items + 2,
        "workers": WORKERS,
        "steps": SPEED_STEPS,
        "steps_per_s": rates,
        "faster_than": {name: round(best["sharded"] / best[name], 2) for name in WAYS if name != "sharded"},
        "losses": {name: [round(loss, 6) for loss in rounds[0][name]["losses"]] for name in list(WAYS)[:2]},
        "largest_relative_gap_of_the_loss": max(gaps),
    }


def main() -> None:
    what, *more = sys.argv[1:]
    load = [round(value, 1) for value in os.getloadavg()]
    result = measure_held(int(more[0]) if more else 20_000_000) if what == "held" else measure_speed(1_000_000)
    path = RESULTS / "sharded_table.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    result = {**result, "machine": {"cpus": os.cpu_count(), "load_before": load}}
    path.write_text(json.dumps({**before, what: result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
