"""Bytes that one worker holds of a training, by ZeRO stage and offload: arithmetic, nothing is run.

Enters: what a job's module is made of (``passes.Measured``), the ``train`` section, the number of workers. Leaves: the
parts of a worker's memory, on the device and on the host, and the most of them at once. What is divided follows
Rajbhandari et al. (2020, arXiv:1910.02054); what DeepSpeed 0.19 holds beside it for a moment (buckets, flat copies,
gathered layers) follows the allocations of small trainings, see docs/decisions/0036-plan.md. Surprising choice: on a
CPU small and large tensors of a pass peak at different times and are added all the same, because glibc keeps freed
small ones for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from distft.plan.hollow import SMALL_BYTES
from distft.plan.passes import Measured, Table
from distft.sections.train import Train

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
FLAT_ELEMENTS = 500_000_000
"""Gradients that stage 0 sums up in one message, as one flat copy."""
LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed's default of stage3_max_live_parameters and stage3_max_reuse_distance: most models stay gathered."""
LOOKED_UP = 6
"""Copies of the rows of a step at once: vectors, gradients, these as they are sent, as they came, and summed up."""
PERSISTENT_ELEMENTS = 100_000
"""DeepSpeed's default of stage3_param_persistence_threshold: smaller parameters are not divided."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker by part, on its device and on the host. On a CPU both are the host's memory.

    Parts: ``parameters`` as the forward pass takes them, ``master`` (their fp32 copies), ``moments`` of the optimiser,
    ``gradients`` that wait for the update, ``buckets`` (what is sent between workers), ``gathered`` (layers that stage
    3 has put together), ``computing`` (a micro-batch's activations, logits, gradients on their way), ``snapshot`` (what
    a checkpoint is written from); of a sharded table ``table`` and ``table_state``, this worker's rows and what the
    optimiser keeps for them, and ``looked_up``, the vectors of a step and their gradients on their way. ``start``: the
    most while the engine is made, which only counts if it is more.
    """

    on_gpu: bool
    device: dict[str, int] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)
    start_device: int = 0
    start_host: int = 0

    @property
    def device_bytes(self) -> int:
        """The most on the device; on a CPU of all."""
        if self.on_gpu:
            return max(sum(self.device.values()), self.start_device)
        return max(sum(self.device.values()) + sum(self.host.values()), self.start_device)

    @property
    def host_bytes(self) -> int:
        """The most on the host."""
        return max(sum(self.host.values()), self.start_host) if self.on_gpu else self.device_bytes

    def part(self, name: str) -> int:
        """Bytes of one part, wherever it lies."""
        return self.device.get(name, 0) + self.host.get(name, 0)

    @property
    def state_bytes(self) -> int:
        """What ZeRO divides."""
        return sum(self.part(name) for name in ("parameters", "master", "moments", "gradients"))


def moments_of(train: Train) -> int:
    """fp32 numbers that the optimiser keeps for each weight."""
    return 2 if train.optimizer != "sgd" else int(train.momentum > 0)


def memory(measured: Measured, train: Train, num_workers: int, on_gpu: bool) -> Memory:
    """What a worker of a training needs, above a process that has imported everything."""
    stage, offload = train.zero.stage, train.zero.offload
    share = -(-measured.num_trained // num_workers)
    owned = measured.num_trained if stage == 0 else share
    moments = 4 * moments_of(train)
    state = {
        "parameters": _parameters(measured, train, num_workers),
        "master": 0 if stage == 0 and train.precision == "fp32" else 4 * owned,
        "moments": moments * owned,
    }
    table = _table(measured.table, num_workers)
    copied = (4 + moments) * share + table.get("table", 0) + table.get("table_state", 0)
    host = {"snapshot": copied if train.checkpoint.asynchronous and offload != "nvme" else 0}
    gradients, sent = _exchanged(measured, train, num_workers)
    if offload != "none":
        host |= {name: state.pop(name) for name in ("master", "moments")}
        # The new weights before they go to the device, and the gradients, whole and as they come.
        host["copies"] = (ELEMENT_BYTES[train.precision] + 4) * share + 8 * largest_layer(measured)
        if stage > 1:
            host["gradients"], gradients = gradients, 0
        if stage == 3:
            host["parameters"] = state.pop("parameters")
    if offload == "nvme":  # maps of files: the system takes the memory back when it needs it
        host |= {"master": 0, "moments": 0}
    passing = measured.pass_bytes if on_gpu else measured.pass_small_bytes + measured.pass_large_bytes
    device = {
        **state,
        "gradients": gradients,
        "buckets": sent,
        "gathered": _gathered(measured, train, on_gpu) if stage == 3 else 0,
        "computing": passing,
        "buffers": measured.buffer_bytes,
        **table,
    }
    start = _start(measured, train, num_workers)
    return Memory(on_gpu, device, host, start, start)


def _table(table: Table | None, num_workers: int) -> dict[str, int]:
    """Parts of a sharded table; the same at every stage."""
    if table is None:
        return {}
    held = table.held(num_workers)
    return {
        "table": 4 * table.dim * held,
        "table_state": 4 * table.state_numbers * held,
        "looked_up": LOOKED_UP * 4 * table.dim * table.looked_up,
    }


def _parameters(measured: Measured, train: Train, num_workers: int) -> int:
    """Bytes of the weights that a worker holds between their uses."""
    numbers = measured.num_trained + measured.num_frozen
    if train.zero.stage == 3:
        whole = _persistent(measured)
        numbers = whole + -(-(numbers - whole) // num_workers)
    return ELEMENT_BYTES[train.precision] * numbers


def _persistent(measured: Measured) -> int:
    return sum(one.numel for one in measured.parameters if one.numel < PERSISTENT_ELEMENTS)


def _exchanged(measured: Measured, train: Train, num_workers: int) -> tuple[int, int]:
    """Bytes of (the gradients that wait for the update, what is sent between workers and its copies).

    Flat copies are made when a pass is over, or has its large tensors behind it: what is more than these counts.
    """
    trained, size = measured.num_trained, ELEMENT_BYTES[train.precision]
    share = -(-trained // num_workers)
    bucket = 4 * min(trained, train.zero.bucket_elements)
    beyond = measured.pass_large_bytes
    if train.zero.stage == 0:
        flat = size * min(trained, FLAT_ELEMENTS) if num_workers > 1 else 0
        return size * trained, max(0, max(flat, 0 if size == 4 else 4 * trained) - beyond)
    if train.zero.stage == 1:  # at low precision another optimiser of DeepSpeed, which keeps them whole in both
        return (4 * trained, bucket) if size == 4 else ((4 + size) * trained, 0)
    if train.zero.stage == 2:
        return 4 * share, bucket + max(0, bucket - beyond)
    largest = max((one.numel for one in measured.parameters if one.trains), default=0)
    flat = max(bucket, 4 * largest)
    return 4 * share, bucket + max(0, flat + flat // num_workers - beyond)


def _gathered(measured: Measured, train: Train, on_gpu: bool) -> int:
    """Bytes of the layers that stage 3 holds together at once, beside this worker's part of them.

    On a CPU also what is kept of the memory of small ones, which are first put together as one.
    """
    section = train.deepspeed.get("zero_optimization", {})
    most = min(int(section.get(f"stage3_max_{key}", LIVE_ELEMENTS)) for key in ("live_parameters", "reuse_distance"))
    numbers = measured.num_trained + measured.num_frozen - _persistent(measured)
    largest = largest_layer(measured)
    numbers = min(numbers, max(most, largest))
    size = ELEMENT_BYTES[train.precision]
    small = sum(one.numel for one in measured.parameters if size * one.numel < SMALL_BYTES)
    return size * (numbers if on_gpu else numbers + min(numbers, small))


def largest_layer(measured: Measured) -> int:
    """Numbers of the largest parameter: the least that stage 3 must put together."""
    return max((one.numel for one in measured.parameters), default=0)


def _start(measured: Measured, train: Train, num_workers: int) -> int:
    """The most while the engine is made: every worker builds the whole model before it is divided."""
    numbers, size = measured.num_trained + measured.num_frozen, ELEMENT_BYTES[train.precision]
    share = -(-measured.num_trained // num_workers)
    if train.zero.stage == 3:
        return 4 * numbers + (2 * size + 4 + 4 + 4 * moments_of(train)) * share
    if train.zero.stage == 0:
        return 4 * numbers if size == 4 else max(4 * numbers, 24 * measured.num_trained + size * measured.num_frozen)
    return max(4 * numbers, 3 * size * measured.num_trained + size * measured.num_frozen) + (4 - size) * share
