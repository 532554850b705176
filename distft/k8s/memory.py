"""How much memory a training pod of a job asks for, by the plan of its training.

Enters: a job, and how many items it has where its dataset does not tell. Leaves: GiB, never less than what the other
stages need. Surprising choice: nothing is asked of a cluster or of this machine, so that the same job makes the same
objects everywhere; a job of which no catalogue is known gets the default.
"""

from __future__ import annotations

import math

from distft.errors import DistftError
from distft.job import Job
from distft.k8s.workloads import WORKER
from distft.storage import Storage

GIB = 2**30
PREPARING_GIB = 4
"""What Ray Data's tasks and the node's own processes take beside the training, which keeps its pod to itself."""
SPARE = 1.2
"""A plan is not exact, and a pod that takes a byte more than its limit is killed."""


def worker_gib(job: Job, num_items: int | None, dataset: Storage | None) -> int:
    """GiB of a worker's pod. ``dataset``: where one may be prepared already, None not to look."""
    stages = [stage for stage in ("train", "finetune") if stage in job.stages]
    return max([WORKER.memory_gib, *(_needed_gib(job, stage, num_items, dataset) for stage in stages)])


def _needed_gib(job: Job, stage: str, num_items: int | None, dataset: Storage | None) -> int:
    from distft.plan.planning import known_catalog, planned
    from distft.train.base import inherited

    known = known_catalog(job, dataset, num_items)
    if known is None:
        return 0
    try:
        working = (inherited(job) if stage == "finetune" else job).trained_as(stage)
    except DistftError:  # its base is not at hand here
        return 0
    on_gpu, workers = job.scaling.use_gpu is True, job.scaling.worker_range[0]
    catalog, num_events = known
    wanted = planned(working, catalog, workers, None, on_gpu, num_events).wanted
    return math.ceil(SPARE * wanted.host_bytes / GIB) + PREPARING_GIB
