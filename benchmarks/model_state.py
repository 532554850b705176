"""What each of 1, 2 and 4 workers holds of the model's state at every ZeRO stage: weights, optimiser, gradients.

Run:  .venv/bin/python benchmarks/model_state.py [JOB]

The model of JOB (``jobs/large-100m.yaml``) takes three steps of one short history a worker, on processes of one thread
that share a gloo group: the real engine and step. Counted is every tensor of the process just before the last update,
when weights, optimiser state and the gradients of the window are all there, by the memory behind it and once each:

- ``weights``: what the module's parameters, or this rank's parts of them, lie in
- ``optimizer``: the fp32 numbers that the optimiser updates, where they are not the weights, and what it keeps for them
- ``gradients``: those of parameters, or this rank's parts of them, that wait for the update
- ``buckets``: all else, which is what gradients are sent through; ``train.zero.bucket_elements`` bounds it, not ZeRO

Each worker's share is set against what one worker alone holds at the same stage; wanted is at most 1/N + 0.05, at stage
3 of all three, at stage 2 of gradients and optimiser, at stage 1 of the optimiser. The largest of the workers counts.
Writes ``benchmarks/results/model_state.json``.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the processes that the tests use too

from distft.job import Job  # noqa: E402
from distft.jobfile import load_job  # noqa: E402
from distft.plan.passes import full_batch  # noqa: E402
from distft.plan.planning import known_catalog  # noqa: E402
from distft.schema import Catalog  # noqa: E402
from distft.train.engine import Engine  # noqa: E402
from distft.train.step import Step, train_step  # noqa: E402
from tests.train.ranks import run_ranks  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
WORKERS, STAGES, NUM_STEPS, LENGTH = (1, 2, 4), (0, 1, 2, 3), 3, 4
DIVIDED = {0: (), 1: ("optimizer",), 2: ("optimizer", "gradients"), 3: ("weights", "optimizer", "gradients")}
"""Stage → what it divides among the workers."""


def storages() -> dict[int, int]:
    """Where the memory behind each tensor of this process starts → its bytes."""
    found = {}
    warnings.simplefilter("ignore", FutureWarning)  # of names that torch has changed, which every object is asked for
    for one in gc.get_objects():
        if isinstance(one, Tensor) and one.device.type == "cpu" and one.layout == torch.strided:
            for tensor in (one, one.grad if one.is_leaf else None):
                if tensor is not None and tensor.untyped_storage().nbytes():
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return found


def places(tensors: Any) -> set[int]:
    return {one.untyped_storage().data_ptr() for one in tensors}


def held(engine: Engine, before: dict[int, int]) -> dict[str, int]:
    """Bytes of each kind that this process holds, beside what it held ``before``."""
    memory = {place: size for place, size in storages().items() if place not in before}
    kinds = {
        "weights": places(getattr(one, "ds_tensor", one) for one in engine.parameters.values()),
        "optimizer": places(
            tensor
            for master in engine._masters()
            for tensor in (master, *(one for one in engine.optimizer.state.get(master, {}).values()))
        ),
    }
    kinds["optimizer"] -= kinds["weights"]
    waiting = getattr(engine._wrapper, "averaged_gradients", None) or {}
    parts = [one for group in waiting.values() for one in (group or []) if one is not None]
    parts = parts or [one.grad for one in engine.parameters.values() if one.grad is not None]
    told = {kind: sum(memory.get(place, 0) for place in where) for kind, where in kinds.items()}
    told["gradients"] = sum(one.nbytes for one in parts)  # which may lie in a bucket
    return {**told, "buckets": sum(memory.values()) - sum(told.values())}


def measured(job: Job, catalog: Catalog) -> dict[str, int]:
    """What this rank holds just before its last update."""
    before = storages()
    torch.manual_seed(job.seed)
    model = job.model.build(catalog)
    engine = Engine(Step(model, job.loss.build(catalog, model.state_dim)), job.train, torch.device("cpu"))
    del model
    found: dict[str, int] = {}
    update = engine.step

    def step(learning_rate: float) -> None:
        gc.collect()
        found.update(held(engine, before))
        update(learning_rate)

    engine.step = step  # type: ignore[method-assign]
    for number in range(NUM_STEPS):
        batch = full_batch((1, LENGTH), catalog, 10 * number + engine.rank)
        train_step(engine, [batch], full_batch((0, LENGTH), catalog), number, 1e-4)
    engine.close()
    return found


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "jobs" / "large-100m.yaml")
    result: dict[str, Any] = {"job": Path(path).name, "stages": {}}
    for stage in STAGES:
        alone: dict[str, int] = {}
        for workers in WORKERS:
            job = load_job(path, [f"train.zero.stage={stage}", f"scaling.num_workers={workers}"])
            catalog = known_catalog(job, None)[0]  # type: ignore[index]
            ranks = run_ranks(workers, measured, job, catalog)
            most = {kind: max(rank[kind] for rank in ranks) for kind in ranks[0]}
            alone = alone or most
            told: dict[str, Any] = {f"{kind}_mb": round(size / 1e6, 1) for kind, size in most.items()}
            divided = DIVIDED[stage]
            if divided:
                share = sum(most[kind] for kind in divided) / sum(alone[kind] for kind in divided)
                told |= {"divided": divided, "share": round(share, 4), "allowed": round(1 / workers + 0.05, 4)}
            result["stages"].setdefault(str(stage), {})[str(workers)] = told
            print(f"ZeRO {stage}, {workers} workers:", json.dumps(told), flush=True)
    (RESULTS / "model_state.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
