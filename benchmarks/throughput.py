"""Events trained on a second by the whole training loop, against a bare PyTorch loop with the same model and batches.

Run:  .venv/bin/python benchmarks/throughput.py cpu DATASET [WORKERS]
      .venv/bin/python benchmarks/throughput.py device DATASET [tiny]

DATASET is what ``distft prepare jobs/ml1m.yaml`` made (``runs/ml1m/dataset``).

``cpu``: ``jobs/ml1m.yaml`` (64 wide, length 200, full softmax over 3,416 items) on WORKERS (without: one, then two)
processes of one thread. The loop is ``distft.train.loop.Loop`` as Ray Train's workers run it, with reading, journal and
checkpoints, without validation. The bare loop has its batches in memory and one forward, backward and optimiser step
each; with two workers under DistributedDataParallel over gloo. The two take epochs in turns. Writes
``benchmarks/results/throughput.json``; its job file is ``ml1m.yaml``.

``device``: the same on one GPU, or on a CPU where there is none, with a model 512 wide of 8 blocks in bf16 at ZeRO 1
and 3; and the share of the device's speed that is reached: the floating-point operations that the model needs for an
event (recomputation and padding not counted), against the best of a few large bf16 matrix products. ``tiny`` takes a
small model: to see that it works. Writes ``benchmarks/results/throughput-device.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for the process groups that the tests use too

from distft.job import Job  # noqa: E402
from distft.jobfile import load_job  # noqa: E402
from distft.models.packing import Packing  # noqa: E402
from distft.schema import PAD, Batch  # noqa: E402
from distft.storage import Storage  # noqa: E402
from distft.train.journal import read_lines  # noqa: E402
from distft.train.loop import Loop  # noqa: E402
from distft.train.settings import ParameterGroup, build_optimizer, learning_rate  # noqa: E402
from distft.train.step import Step  # noqa: E402
from tests.train.ranks import group, run_ranks  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
ROUNDS = 3


# -- the two loops -----------------------------------------------------------------------------------------


def no_report(_: dict[str, Any]) -> None:
    """Where Ray Train would be told of a checkpoint."""


class Ours:
    """The real loop, an epoch at a time; each checkpoint of it goes on from the one before."""

    def __init__(self, job: Job, dataset: Storage, device: torch.device) -> None:
        root = Storage(job.storage)
        root.make()
        if dist.get_rank() == 0:
            os.symlink(dataset.path, root.path / "dataset")
        dist.barrier()
        self.loop = Loop(job, root, "train", device, no_report)
        self.loop.validation.score = lambda engine: {}  # type: ignore[method-assign]
        self.root = root

    def epoch(self) -> float:
        """Seconds of the next epoch and of the checkpoint at its end, until it is committed."""
        loop, started = self.loop, time.perf_counter()
        loop._train_epoch()
        loop.progress.epoch, loop.progress.epoch_step = loop.progress.epoch + 1, 0
        loop._save()
        loop.saver.drain()
        synchronise(loop.engine.device)
        return time.perf_counter() - started

    def data_wait_share(self) -> float:
        lines = [line for line in read_lines(self.root / "train") if line["kind"] == "train"]
        return max((line["data_wait_share"] for line in lines), default=0.0)

    def close(self) -> None:
        self.loop.prefetch.close()
        self.loop.saver.close()
        self.loop.engine.close()


class Bare:
    """Model, optimiser and nothing else: the batches of an epoch are in memory, and so are their counts."""

    def __init__(self, job: Job, ours: Loop, device: torch.device) -> None:
        self.job, self.device = job, device
        catalog = ours.encoder.catalog()
        torch.manual_seed(job.seed)
        model = job.model.build(catalog)
        self.module = Step(model, job.loss.build(catalog, model.state_dim)).to(device)
        if job.train.precision == "bf16":
            self.module = self.module.bfloat16()
        self.optimizer = build_optimizer(job.train, [ParameterGroup(list(self.module.parameters()))])
        self.world_size = dist.get_world_size()
        self.wrapped = DistributedDataParallel(self.module) if self.world_size > 1 else self.module
        self.steps = [ours._step_batches(0, step) for step in range(ours.reader.steps_per_epoch)]
        self.counts = [whole_count(batches) for batches in self.steps]

    def epoch(self) -> float:
        started = time.perf_counter()
        for batches, count in zip(self.steps, self.counts, strict=True):
            self.step(batches, count)
        synchronise(self.device)
        return time.perf_counter() - started

    def step(self, batches: list[Batch], count: int) -> None:
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            if self.world_size > 1:
                self.wrapped.require_backward_grad_sync = last  # type: ignore[assignment]
            loss_sum, _ = self.wrapped(batch.to(self.device))
            (loss_sum * (self.world_size / count)).backward()
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate(self.job.train, 0, 100)
        self.optimizer.step()
        self.optimizer.zero_grad()


def whole_count(batches: list[Batch]) -> int:
    """Targets of a step over all ranks; every rank must have as many micro-batches, or DDP would wait for ever."""
    mine = torch.tensor([sum(int((batch.target_BL != PAD).sum()) for batch in batches), len(batches)])
    most = mine.clone()
    dist.all_reduce(mine)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    assert int(mine[1]) == int(most[1]) * dist.get_world_size()
    return int(mine[0])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- what is measured --------------------------------------------------------------------------------------


def rounds(job: Job, dataset: str, device: torch.device) -> dict[str, Any]:
    """One stage on this rank: seconds of the epochs of both loops, in turns, and the events of one."""
    ours = Ours(job, Storage(dataset), device)
    bare = Bare(job, ours.loop, device)
    bare.step(bare.steps[0], bare.counts[0])  # warm
    seconds: dict[str, list[float]] = {"bare": [], "distft": []}
    for number in range(ROUNDS):
        for name in ("bare", "distft") if number % 2 else ("distft", "bare"):
            dist.barrier()
            seconds[name].append((bare if name == "bare" else ours).epoch())
    found = {
        "seconds": seconds,
        "events": sum(int(batch.length_B.sum()) for batches in bare.steps for batch in batches),
        "padded": padded_shares([batch for batches in bare.steps for batch in batches]),
        "data_wait_share": ours.data_wait_share(),
        "steps": len(bare.steps),
    }
    ours.close()
    return found


def padded_shares(batches: list[Batch]) -> dict[str, float]:
    """Share of padding among the positions of the batches as they are collated, and of those that are computed."""
    packings = [Packing.of(batch) for batch in batches]
    real = sum(len(packing.index_N) for packing in packings)
    collated = sum(batch.item_BL.numel() for batch in batches)
    attended = sum(group.rows * group.length for packing in packings for group in packing.groups)
    return {"as collated": round(1 - real / collated, 3), "in attention": round(1 - real / attended, 3), "elsewhere": 0}


def summary(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Events a second of both loops over all ranks, and the ratio of their fastest epochs and of their medians."""
    events = sum(rank["events"] for rank in ranks)
    slowest = {
        name: [max(rank["seconds"][name][number] for rank in ranks) for number in range(ROUNDS)]
        for name in ("bare", "distft")
    }
    median = {name: statistics.median(values) for name, values in slowest.items()}
    return {
        "events_per_s": {name: round(events / seconds) for name, seconds in median.items()},
        "ratio": round(median["bare"] / median["distft"], 3),
        "ratio_of_fastest": round(min(slowest["bare"]) / min(slowest["distft"]), 3),
        "epoch_s": {name: [round(value, 2) for value in values] for name, values in slowest.items()},
        "data_wait_share": max(rank["data_wait_share"] for rank in ranks),
        "padded_share": ranks[0]["padded"],
        "steps_per_epoch": ranks[0]["steps"],
    }


def job_of(folder: str, stage: int, workers: int, *more: str) -> Job:
    settings = [f"storage={folder}/{stage}", f"train.zero.stage={stage}", f"scaling.num_workers={workers}", *more]
    return load_job(str(ROOT / "jobs" / "ml1m.yaml"), settings)


def on_cpu(dataset: str, workers: int) -> dict[str, Any]:
    found = {}
    for stage in range(4):
        with tempfile.TemporaryDirectory() as folder:
            ranks = run_ranks(workers, rounds, job_of(folder, stage, workers), dataset, torch.device("cpu"))
        found[f"zero {stage}"] = summary(ranks)
        print(workers, stage, json.dumps(found[f"zero {stage}"]), file=sys.stderr, flush=True)
    return found


# -- one device --------------------------------------------------------------------------------------------

LARGE = ("model.dim=512", "model.num_blocks=8", "model.num_heads=8", "train.max_tokens_per_micro_batch=65536")
TINY = ("model.dim=32", "train.batch_size=512")


def flops_per_event(job: Job, num_items: int, mean_length: float) -> float:
    """Operations that the forward and backward pass need for one event: 6 a weight it meets, 12·D·l/2 a block."""
    model: Any = job.model
    block = (4 + 2 * model.feed_forward) * model.dim**2
    weights = model.num_blocks * block + num_items * model.dim
    return float(6 * weights + model.num_blocks * 12 * model.dim * mean_length / 2)


def peak_flops(device: torch.device) -> float:
    """The best of a few large bf16 products: what the device gives, rather than what its maker says."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(8):
        synchronise(device)
        started = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def on_device(dataset: str, tiny: bool) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    found: dict[str, Any] = {"device": name, "precision": "bf16", "settings": TINY if tiny else LARGE}
    found["peak_tflops"] = round(peak_flops(device) / 1e12, 2)
    for stage in (1, 3):
        with tempfile.TemporaryDirectory() as folder, group(0, 1, folder):
            job = job_of(folder, stage, 1, "train.precision=bf16", *(TINY if tiny else LARGE))
            measured = rounds(job, dataset, device)
            line = summary([measured])
            rows = job.train.batch_size * measured["steps"]
            needed = flops_per_event(job, num_items(dataset), measured["events"] / rows)
            rate = line["events_per_s"]
            line["flop_utilisation"] = {k: round(rate[k] * needed / (found["peak_tflops"] * 1e12), 4) for k in rate}
            found[f"zero {stage}"] = line
    return found


def num_items(dataset: str) -> int:
    from distft.data.encode import Encoder

    return Encoder.of_dataset(Storage(dataset)).catalog().num_items


def main() -> None:
    what, dataset, *more = sys.argv[1:]
    load, name = [round(value, 1) for value in os.getloadavg()], "throughput"
    if what == "cpu":
        counts = [int(value) for value in more] or [1, 2]
        result: dict[str, Any] = {f"{count} workers": on_cpu(dataset, count) for count in counts}
        shutil.copy(ROOT / "jobs" / "ml1m.yaml", RESULTS / "ml1m.yaml")
    else:
        result, name = on_device(dataset, "tiny" in more), "throughput-device"
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if what == "cpu" and path.exists() else {}
    result = {**before, **result, "machine": {"cpus": os.cpu_count(), "load_before": load}}
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
