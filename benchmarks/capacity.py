"""What 10 million users, 100 million items and 10 billion events send and hold at 8, 64 and 512 workers.

Run:  .venv/bin/python benchmarks/capacity.py

Nothing is trained. Memory is ``distft plan``'s for ``benchmarks/results/capacity.yaml``. What goes over the network in
a step is simulated: each worker draws the items of its 64 histories of 200 events by Zipf's law (item n as often as
1/n), its targets likewise, and the negatives that all share; then it is counted which distinct rows each asks which of
the others for, as ``train/sharded_table.py`` does. That gives bytes of ids, vectors and gradients, and how uneven the
load of the owners is: with row n on worker n mod W, and for comparison with runs of rows. Beside it stand the volumes
that do not depend on data: what ZeRO gathers and scatters of the other parameters (a ring: (W - 1) / W of the bytes for
each pass), and what a replicated table, or one under ZeRO-3, would send. One step is simulated.

Writes ``benchmarks/results/capacity.json`` and prints the tables of docs/capacity.md, in Markdown; with ``--check`` it
only says whether the page has them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from distft.jobfile import load_job  # noqa: E402
from distft.plan.planning import Plan, known_catalog, planned  # noqa: E402
from distft.plan.states import ELEMENT_BYTES  # noqa: E402
from distft.schema import NUM_RESERVED  # noqa: E402
from distft.train.sharded_table import owners  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "capacity.md"
WORKERS = (8, 64, 512)
NUM_ITEMS, NUM_EVENTS = 100_000_000, 10_000_000_000
ID_BYTES, COUNT_BYTES, FP32_BYTES = 8, 8, 4
SEED = 1


class Zipf:
    """Item rows drawn as often as 1/n, by inverting the cumulated weights, which are close to a logarithm."""

    def __init__(self, num_items: int, seed: int) -> None:
        self.num_items, self.rng = num_items, np.random.default_rng(seed)

    def draw(self, count: int) -> np.ndarray:
        place = np.exp(self.rng.random(count) * np.log(self.num_items + 1)).astype(np.int64)
        return NUM_RESERVED + np.minimum(place, self.num_items) - 1


def asked(num_workers: int, rows: int, length: int, num_negatives: int, num_items: int) -> list[np.ndarray]:
    """The distinct item rows of each worker's step, ascending."""
    draw, uniform = Zipf(num_items, SEED), np.random.default_rng(SEED)
    negatives = NUM_RESERVED + uniform.integers(0, num_items, num_negatives)
    events = rows * (length + 1)  # each position's target is the next position's item
    return [np.unique(np.concatenate([draw.draw(events), negatives])) for _ in range(num_workers)]


def exchanged(rows: list[np.ndarray], num_rows: int, dim: int) -> dict[str, Any]:
    """Volumes of the look-ups of one step, and the load of the worker that serves most against the mean."""
    num_workers = len(rows)
    modulo, runs = np.zeros(num_workers, np.int64), np.zeros(num_workers, np.int64)
    kept = 0
    for worker, own in enumerate(rows):
        by_owner = np.bincount(owners(torch.from_numpy(own), num_workers).numpy(), minlength=num_workers)
        kept += int(by_owner[worker])
        modulo += by_owner
        runs += np.bincount(own // -(-num_rows // num_workers), minlength=num_workers)
    distinct = sum(len(own) for own in rows)
    away = (distinct - kept) / num_workers
    return {
        "distinct_rows": round(distinct / num_workers),
        "ids_bytes": round(away * ID_BYTES + (num_workers - 1) * COUNT_BYTES),
        "vectors_bytes": round(away * FP32_BYTES * dim),
        "gradients_bytes": round(away * FP32_BYTES * dim),
        "busiest_owner_to_mean": round(float(modulo.max() / modulo.mean()), 2),
        "busiest_owner_to_mean_with_runs_of_rows": round(float(runs.max() / runs.mean()), 2),
    }


def ring(size: float, num_workers: int) -> int:
    """Bytes that each worker sends for one all-gather or reduce-scatter of ``size`` bytes."""
    return round(size * (num_workers - 1) / num_workers)


def collectives(plan: Plan, precision: str, num_workers: int) -> dict[str, int]:
    """Bytes that each worker sends in a step for the other parameters, and for a table that is not sharded."""
    numbers, size = plan.measured.num_trained, ELEMENT_BYTES[precision]
    table = plan.measured.table
    assert table is not None
    whole = table.rows * table.dim
    return {
        "zero 1, gradients and weights": ring(FP32_BYTES * numbers, num_workers) + ring(size * numbers, num_workers),
        "zero 3, gradients and weights twice": ring(FP32_BYTES * numbers, num_workers)
        + 2 * ring(size * numbers, num_workers),
        "a replicated table's gradient, summed": 2 * ring(FP32_BYTES * whole, num_workers),
        "a table under zero 3": ring(FP32_BYTES * whole, num_workers) + 2 * ring(size * whole, num_workers),
    }


def measured() -> dict[str, Any]:
    job = load_job(str(RESULTS / "capacity.yaml"))
    known = known_catalog(job, None, NUM_ITEMS)
    assert known is not None
    catalog, found = known[0], {}
    length = job.model.max_history
    rows = job.train.max_tokens_per_micro_batch // length
    windows = NUM_EVENTS // length
    for workers in WORKERS:
        step = {"batch_size": rows * workers}
        sized = job.model_copy(update={"train": job.train.model_copy(update=step)})
        plan = planned(sized, catalog, workers, None, True, NUM_EVENTS)
        distinct = asked(workers, rows, length, job.loss.num_negatives, NUM_ITEMS)  # type: ignore[attr-defined]
        table, need = plan.measured.table, plan.wanted.memory
        assert table is not None
        found[str(workers)] = {
            "batch_size": rows * workers,
            "steps_per_epoch": -(-windows // (rows * workers)),
            "worker": {
                "table_bytes": need.part("table"),
                "table_state_bytes": need.part("table_state"),
                "looked_up_bytes": need.part("looked_up"),
                "device_bytes": plan.wanted.device_bytes,
                "snapshot_bytes": need.part("snapshot"),
                "training_rows_bytes": plan.dataset_bytes,
            },
            "step": exchanged(distinct, table.rows, table.dim) | collectives(plan, job.train.precision, workers),
            "checkpoint_bytes": plan.checkpoint_bytes,
            "parameters_beside_the_table": plan.measured.num_trained,
        }
    return found


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e8 else f"{size / 1e6:,.0f}"


def tables(found: dict[str, Any]) -> str:
    """Both tables of the page."""
    head = "| | " + " | ".join(f"{workers} workers" for workers in found) + " |\n|---|" + "---|" * len(found)
    worker = {
        "rows of the table": "table_bytes",
        "their optimiser state": "table_state_bytes",
        "a step's vectors and gradients": "looked_up_bytes",
        "all of the device at its peak": "device_bytes",
        "the host's copy for checkpoints": "snapshot_bytes",
        "the host's training rows": "training_rows_bytes",
    }
    step = {
        "ids asked for": "ids_bytes",
        "vectors": "vectors_bytes",
        "gradients of rows": "gradients_bytes",
        "ZeRO 1: gradients and weights beside the table": "zero 1, gradients and weights",
        "ZeRO 3: the same, weights twice": "zero 3, gradients and weights twice",
        "*instead: a table whole on every worker*": "a replicated table's gradient, summed",
        "*instead: the table under ZeRO 3*": "a table under zero 3",
    }
    lines = ["Held by each worker, MB:", "", head]
    lines += [_line(name, found, lambda one, key=key: megabytes(one["worker"][key])) for name, key in worker.items()]
    lines += ["", "Sent by each worker in a step, MB:", "", head]
    lines += [_line(name, found, lambda one, key=key: megabytes(one["step"][key])) for name, key in step.items()]
    lines += ["", "Of a step:", "", head]
    lines.append(_line("histories in it", found, lambda one: f"{one['batch_size']:,}"))
    lines.append(_line("steps of an epoch", found, lambda one: f"{one['steps_per_epoch']:,}"))
    lines.append(_line("distinct rows a worker asks for", found, lambda one: f"{one['step']['distinct_rows']:,}"))
    name = "load of the busiest owner, against the mean"
    lines.append(_line(name, found, lambda one: f"{one['step']['busiest_owner_to_mean']}"))
    key = "busiest_owner_to_mean_with_runs_of_rows"
    lines.append(_line("*the same with runs of rows*", found, lambda one: f"{one['step'][key]}"))
    return "\n".join(lines)


def _line(name: str, found: dict[str, Any], cell: Any) -> str:
    return f"| {name} | " + " | ".join(cell(one) for one in found.values()) + " |"


def main() -> None:
    if "--check" in sys.argv[1:]:
        found = json.loads((RESULTS / "capacity.json").read_text())
        sys.exit(0 if tables(found) in PAGE.read_text() else f"{PAGE} does not have the tables of {RESULTS}")
    found = measured()
    (RESULTS / "capacity.json").write_text(json.dumps(found, indent=2) + "\n")
    print(tables(found))


if __name__ == "__main__":
    main()
