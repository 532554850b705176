"""What the command and a run ask of a plan: for which device, with which memory, and whether the job fits.

Enters: a job and what was given on the command line. Leaves: a ``Plan`` and a ``Calibration``, or a refusal.
Surprising choice: what a machine has is all of its memory, not what is free now: another program may end, and a job
that needs more than there is never fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from distft.errors import ArtefactError
from distft.job import Job
from distft.plan.calibration import Calibration, calibrated
from distft.plan.planning import PROCESS_BYTES, Plan, gigabytes, known_catalog, planned, refuse
from distft.plan.states import largest_layer, memory
from distft.schema import Catalog
from distft.storage import Storage

STATE_BYTES, SPARE = 64, 8
"""More bytes than any setting holds for a weight, and more numbers than a layer keeps for each of its outputs."""
CGROUP = Path("/sys/fs/cgroup/memory.max")


def plan(
    job: Job,
    dataset: Storage,
    *,
    num_items: int | None = None,
    num_workers: int | None = None,
    device_bytes: int | None = None,
    on_gpu: bool | None = None,
) -> Plan:
    """The plan of a job, without ``device_bytes`` for this machine. Raises ArtefactError for want of a catalogue."""
    known = known_catalog(job, dataset, num_items)
    if known is None:
        raise ArtefactError(
            f"There is no dataset at {dataset}, and the job does not tell how many items there are",
            "the size of the catalogue",
            "Run 'distft prepare' first, or give --items.",
        )
    workers = num_workers or job.scaling.worker_range[0]
    gpu = uses_gpu(job) if on_gpu is None else on_gpu
    room = memory_here(workers, gpu) if device_bytes is None else device_bytes
    catalog, num_events = known
    return planned(job, catalog, workers, room, gpu, num_events)


def uses_gpu(job: Job) -> bool:
    """True if the job asks for GPUs, or takes what is here and there is one."""
    return torch.cuda.is_available() if job.scaling.use_gpu == "auto" else bool(job.scaling.use_gpu)


def memory_here(num_workers: int, on_gpu: bool) -> int | None:
    """Bytes of one worker's device if all run on this machine; None for a GPU that is not here."""
    if on_gpu:
        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return machine_bytes() // num_workers


def machine_bytes() -> int:
    """Bytes of this machine's memory, or of what this container may have of it."""
    whole = int(psutil.virtual_memory().total)
    try:
        return min(whole, int(CGROUP.read_text()))
    except (OSError, ValueError):  # no limit: "max"
        return whole


def check_fits(
    job: Job, dataset: Storage | None, nodes: Sequence[dict[str, float]] | None, section: str = "train"
) -> None:
    """Raises UsageError for a training that no device here, or of the cluster's ``nodes``, has the memory for.

    What is not known is not refused: a catalogue that is still to be prepared, a GPU that is elsewhere, nodes that do
    not tell. ``dataset``: None where it is still to be prepared. ``section``: the key of the job that it is trained by.
    """
    known = known_catalog(job, dataset)
    if known is None:
        return
    workers, gpu = job.scaling.worker_range[0], uses_gpu(job)
    if nodes is not None:
        gpu = any(node.get("GPU") for node in nodes) if job.scaling.use_gpu == "auto" else bool(job.scaling.use_gpu)
    room = memory_here(workers, gpu) if nodes is None else _of_nodes(nodes, workers, gpu)
    if room is not None and not surely_fits(job, known[0], room):
        refuse(planned(job, known[0], workers, room, gpu, known[1]), f"{section}.zero")


def surely_fits(job: Job, catalog: Catalog, room: int) -> bool:
    """True where a device has twice of what any setting could need, by a bound that is much too high and found at once.

    A pass keeps at most SPARE numbers a position for each output of each layer, and scores of pairs of positions.
    """
    sharded = job.model.item_table.is_sharded
    with torch.device("meta"):
        model = job.model.build(replace(catalog, has_item_table=not sharded))
    shapes = [one.shape for one in model.parameters()]
    positions = max(job.train.max_tokens_per_micro_batch, job.model.max_history)
    outputs = sum(max(shape) for shape in shapes if catalog.num_items not in shape)
    pairs = job.model.max_history * int(getattr(job.model, "num_heads", 1)) * int(getattr(job.model, "num_blocks", 1))
    scores = int(getattr(job.loss, "max_logits", 0)) + int(getattr(job.loss, "num_negatives", 1)) * positions
    rows = -(-catalog.num_items // job.scaling.worker_range[0]) if sharded else 0
    state = STATE_BYTES * (sum(one.numel() for one in model.parameters()) + rows * model.state_dim)
    return 2 * (PROCESS_BYTES + state + 4 * SPARE * (positions * (outputs + pairs) + scores)) < room


def _of_nodes(nodes: Sequence[dict[str, float]], num_workers: int, gpu: bool) -> int | None:
    """Memory of one worker where they are spread over the nodes of a cluster; None where that is not known."""
    sizes = [int(node.get("memory", 0) + node.get("object_store_memory", 0)) for node in nodes if node.get("CPU")]
    if gpu or not sizes or not all(sizes):
        return None
    each = -(-num_workers // len(sizes))
    return max(sizes) // each


def timing(job: Job, dataset: Storage, found: Plan) -> Calibration | str:
    """How long the training takes, or the reason why that cannot be found out here."""
    if not dataset.is_local or dataset.manifest("dataset") is None:
        return "no dataset is prepared on this machine"
    if found.on_gpu and not torch.cuda.is_available():
        return "there is no GPU here"
    alone = memory(found.measured, job.train, 1, False).device_bytes + PROCESS_BYTES
    if alone > machine_bytes():
        return f"one worker alone needs {gigabytes(alone)}"
    return calibrated(job, dataset, found.wanted.num_workers, found.on_gpu)


def rows(found: Plan, calibration: Calibration | str) -> list[tuple[str, str]]:
    """(What, how much) of all that does not depend on the setting, for people."""
    measured = found.measured
    of = f"{measured.rows} histories of {measured.length} events"
    lines = [
        ("parameters", f"{measured.num_trained + measured.num_frozen:,} ({measured.num_trained:,} train)"),
        ("items", f"{found.num_items:,} rows, tables of {gigabytes(found.item_table_bytes)} in fp32"),
        ("largest layer", gigabytes(4 * largest_layer(measured))),
        (f"micro-batch of {of}", f"{gigabytes(measured.pass_bytes)} at its peak"),
        ("activations of it", gigabytes(measured.activation_bytes)),
        ("scores in the loss", gigabytes(measured.logits_bytes)),
        ("training rows", f"{gigabytes(found.dataset_bytes)} in each worker"),
        ("checkpoint", gigabytes(found.checkpoint_bytes)),
    ]
    if measured.table is not None:
        wanted, table = found.wanted, measured.table
        held, state = (gigabytes(wanted.memory.part(part)) for part in ("table", "table_state"))
        told = f"{held} of rows and {state} of their state in each of {wanted.num_workers} workers"
        lines.insert(2, ("sharded table", f"{told}, {table.looked_up:,} rows looked up in a step"))
    if isinstance(calibration, str):
        return [*lines, ("time", calibration)]
    write_s = found.checkpoint_bytes / calibration.write_bytes_per_s
    lines[-1] = ("checkpoint", f"{gigabytes(found.checkpoint_bytes)}, written in about {write_s:.1f} s")
    per_step = f"{calibration.steps_per_epoch:,} steps of {calibration.step_s:.3f} s"
    return [*lines, ("epoch", f"about {calibration.epoch_s:,.0f} s: {per_step}, exchange and validation not counted")]


HEADINGS = {
    "parameters": "weights", "master": "fp32", "moments": "moments", "gradients": "grads", "buckets": "buckets",
    "gathered": "gathered", "computing": "pass", "snapshot": "copy", "table": "table", "table_state": "its state",
    "looked_up": "looked up",
}  # fmt: skip


def settings_text(found: Plan) -> str:
    """A line of numbers for each setting, in GB; the job's own, the cheapest and those that do not fit are marked."""
    most = max(one.device_bytes for one in found.settings)
    unit, name = (1e9, "GB") if most >= 1e10 else (1e6, "MB")
    shown = [part for part in HEADINGS if found.measured.table or part not in ("table", "table_state", "looked_up")]
    lines = [("ZeRO", *(HEADINGS[part] for part in shown), "device", "host", "")]
    for one in found.settings:
        parts = [f"{one.memory.part(part) / unit:,.1f}" if one.memory.part(part) else "-" for part in shown]
        marks = [] if one.fits(found.available_bytes) else ["does not fit"]
        marks += ["the job's"] if (one.stage, one.offload) == (found.wanted.stage, found.wanted.offload) else []
        marks += ["cheapest"] if one == found.cheapest and found.available_bytes is not None else []
        sizes = f"{one.device_bytes / unit:,.1f}", f"{one.host_bytes / unit:,.1f}"
        offload = "" if one.offload == "none" else f" {one.offload}"
        lines.append((f"{one.stage}{offload}", *parts, *sizes, ", ".join(marks)))
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]) - 1)]
    body = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:-1], widths[1:]), line[-1]]).rstrip()
        for line in lines
    ]
    room = "" if found.available_bytes is None else f", which is {gigabytes(found.available_bytes)}"
    device = "GPU, and of the host" if found.on_gpu else "memory"
    return "\n".join([f"{name} of each worker's {device}{room}", *body])


def to_json(found: Plan, calibration: Calibration | str) -> dict[str, Any]:
    """Plan and calibration as JSON values."""
    if isinstance(calibration, str):
        return {**found.to_json(), "calibration": None, "why_not": calibration}
    return {**found.to_json(), "calibration": calibration.to_json()}
