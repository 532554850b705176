"""How long a training will take: a few of its steps, taken here by one worker in its stead.

Enters: a job whose dataset is prepared and lies on this machine. Leaves: seconds of a step and of an epoch, and how
fast a checkpoint is written. Surprising choice: the one worker trains on its share of a batch, alone, so that what
workers wait for each other is not in it; nothing of it is kept.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from distft.job import Job
from distft.storage import Storage
from distft.train.loop import Loop, num_threads

NUM_STEPS, WARM_UP = 12, 2
WRITTEN_BYTES = 64 << 20


@dataclass(frozen=True)
class Calibration:
    """Seconds of one step of a worker and of an epoch, without validation; bytes a second that a disk takes."""

    step_s: float
    steps_per_epoch: int
    epoch_s: float
    write_bytes_per_s: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def calibrated(job: Job, dataset: Storage, num_workers: int, use_gpu: bool) -> Calibration:
    """Takes NUM_STEPS steps of one worker of ``num_workers``. The dataset is in a folder of this machine."""
    share = math.ceil(job.train.batch_size / num_workers)
    alone = job.model_copy(update={"train": job.train.model_copy(update={"batch_size": share})})
    torch.set_num_threads(num_threads(job))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if use_gpu else "gloo", store=HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory(prefix="distft-plan-") as folder:
        root = Storage(folder)
        os.symlink(dataset.path, root.path / "dataset")
        (root / "train").make()
        loop = Loop(alone, root, "train", torch.device("cuda" if use_gpu else "cpu"), lambda line: None)
        try:
            seconds = loop.timed(NUM_STEPS)
        finally:
            loop.close()
    step_s = statistics.median(seconds[WARM_UP:] or seconds)
    steps = math.ceil(loop.reader.rows_per_epoch / job.train.batch_size)
    return Calibration(step_s, steps, step_s * steps, _written_per_s(job.storage))


def _written_per_s(storage: str) -> float:
    """Bytes a second that go to the job's storage, or to the nearest folder above it that is there."""
    place = os.path.abspath(storage.removeprefix("file://"))
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    block = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=place if os.access(place, os.W_OK) else None) as file:
        started = time.perf_counter()
        for _ in range(WRITTEN_BYTES >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return WRITTEN_BYTES / (time.perf_counter() - started)
