"""What one micro-batch needs beside the model's state: its own code, run on tensors that have no memory.

Enters: a job and its catalogue. Leaves: the parameters, and the most bytes that a forward and backward pass holds of
what it computes: activations, logits, gradients on their way. Surprising choice: no more than two of a model's blocks
are run, and what the others add is taken from the difference: 32 blocks of a large model draw as much dropout as the
training itself does.

Shape legend: B histories, L positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from distft.data.collate import train_batch
from distft.job import Job
from distft.losses.chunks import only_different
from distft.models.base import Model
from distft.models.looked_up import LookedUp
from distft.plan.hollow import Count, Hollow, hollowed
from distft.schema import NUM_RESERVED, PAD, Batch, Catalog, Histories
from distft.train.settings import DTYPES
from distft.train.step import Step

PHASES = ("forward", "loss", "blocks", "embeddings")
"""Of a pass: when what is computed is used for the last time differs, so the peak of each is extrapolated by itself."""
Peak = dict[str, tuple[float, float]]
"""Phase → (bytes in small tensors, bytes in large ones), see ``hollow.SMALL_BYTES``."""


@dataclass(frozen=True)
class Parameter:
    """One parameter: its name, numbers, whether it trains, and the group of layers that it belongs to."""

    name: str
    numel: int
    trains: bool
    group: str


@dataclass(frozen=True)
class Table:
    """A table of items that is shared out among the workers: its whole size, and what of it a step looks up.

    ``state_numbers``: what the optimiser keeps for a row. ``looked_up``: distinct rows of a worker's step at the most.
    """

    rows: int
    dim: int
    state_numbers: int
    looked_up: int

    def held(self, num_workers: int) -> int:
        """Rows of one worker."""
        return -(-self.rows // num_workers)


@dataclass(frozen=True)
class Measured:
    """What a job's module is made of, and what its passes need.

    ``buffer_bytes``: of tables that do not train and are no weights. ``activation_bytes``: what a forward pass leaves
    for the backward pass. ``pass_small_bytes`` and ``pass_large_bytes``: the peak of a whole pass, gradients being
    handed on as soon as they are there; of all tensors together it is ``pass_bytes``. ``logits_bytes``: the most that
    the loss's chunk of scores takes of it. ``table``: of items, where it is none of the ``parameters``.
    """

    parameters: tuple[Parameter, ...]
    buffer_bytes: int
    activation_bytes: int
    pass_bytes: int
    pass_small_bytes: int
    pass_large_bytes: int
    logits_bytes: int
    rows: int
    length: int
    table: Table | None = None

    @property
    def num_trained(self) -> int:
        """Numbers of the parameters that train."""
        return sum(one.numel for one in self.parameters if one.trains)

    @property
    def num_frozen(self) -> int:
        """Numbers of the parameters that do not."""
        return sum(one.numel for one in self.parameters if not one.trains)


def measured(job: Job, catalog: Catalog, num_workers: int, frozen: frozenset[str] = frozenset()) -> Measured:
    """What a worker's largest micro-batch needs: as many full histories as its budget and its share of a step hold.

    ``frozen``: names of the model's parameters that do not train.
    """
    length = job.model.max_history
    share = math.ceil(job.train.batch_size / num_workers)
    rows = max(1, min(share, job.train.max_tokens_per_micro_batch // length))
    num_blocks = int(getattr(job.model, "num_blocks", 1))
    whole = _module(job, catalog, frozen)
    sizes = (min(num_blocks, 1), min(num_blocks, 2))
    found = [_passed(_with_blocks(job, size), catalog, frozen, (rows, length)) for size in sorted(set(sizes))]
    alive, peak = found[0][0], found[0][1]
    if len(found) == 2:
        more = num_blocks - sizes[0]
        alive += more * (found[1][0] - found[0][0])
        peak = {phase: _further(found[0][1][phase], found[1][1][phase], more) for phase in PHASES}
    return Measured(
        parameters=tuple(_parameters(whole)),
        buffer_bytes=sum(one.numel() * one.element_size() for one in whole.buffers()),
        activation_bytes=round(alive),
        pass_bytes=round(max(small + large for small, large in peak.values())),
        pass_small_bytes=round(max(small for small, _ in peak.values())),
        pass_large_bytes=round(max(large for _, large in peak.values())),
        logits_bytes=_logits_bytes(job, catalog, rows * length),
        rows=rows,
        length=length,
        table=_table(job, catalog, whole, (rows, length), -(-share // rows)),
    )


def _table(job: Job, catalog: Catalog, module: Step, shape: tuple[int, int], num_micro_batches: int) -> Table | None:
    """The sharded table of a job, if it has one."""
    lookup = _lookup(module)
    if lookup is None:
        return None
    distinct = len(_rows(module, full_batch(shape, catalog)))
    numbers = 1 if job.model.item_table.rule == "rowwise_adagrad" else 2 * lookup.embedding_dim
    looked_up = min(catalog.num_items, distinct * num_micro_batches)
    return Table(catalog.num_items, lookup.embedding_dim, numbers, looked_up)


def _lookup(module: Step) -> LookedUp | None:
    return next((one for one in module.modules() if isinstance(one, LookedUp)), None)


def _rows(module: Step, batch: Batch) -> torch.Tensor:
    """The distinct item rows, PAD among them, that a forward pass asks for, ascending."""
    asked = torch.cat([batch.item_BL.flatten(), module.loss.item_rows(batch)])
    rows: torch.Tensor = torch.unique(torch.cat([asked.new_full((1,), PAD), asked]))
    return rows


def _further(one: tuple[float, float], two: tuple[float, float], more: int) -> tuple[float, float]:
    small, large = (first + more * (second - first) for first, second in zip(one, two, strict=True))
    return small, large


def _with_blocks(job: Job, num_blocks: int) -> Job:
    if not hasattr(job.model, "num_blocks"):
        return job
    return job.model_copy(update={"model": job.model.model_copy(update={"num_blocks": num_blocks})})


def _module(job: Job, catalog: Catalog, frozen: frozenset[str]) -> Step:
    """Model and loss, the model's parameters on the meta device."""
    catalog = replace(catalog, has_item_table=not job.model.item_table.is_sharded)
    with torch.device("meta"):
        model = job.model.build(catalog)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    module = Step(model, job.loss.build(catalog, model.state_dim))
    model.recompute = job.train.activation_checkpointing
    dtype = DTYPES[job.train.precision]
    lookup = _lookup(module)
    if lookup is not None:
        lookup.dtype = dtype
    return module if dtype == torch.float32 else module.to(dtype)


def _parameters(module: Step) -> Iterator[Parameter]:
    groups = {id(one): group for group, members in module.model.layer_groups().items() for one in members}
    for name, one in module.named_parameters():
        yield Parameter(name, one.numel(), one.requires_grad, groups.get(id(one), "loss"))


def _passed(job: Job, catalog: Catalog, frozen: frozenset[str], shape: tuple[int, int]) -> tuple[float, Peak]:
    """(Bytes alive after the forward pass, the peak of every phase) of one micro-batch of B full histories."""
    module = _module(job, catalog, frozen)
    blocks = _of_blocks(module.model)
    hollowed(module)
    module.train()
    count, peak = Count(), dict.fromkeys(PHASES, (0.0, 0.0))
    count.ignore(module)

    def ends(phase: str) -> None:
        most = count.most_since()
        peak[phase] = (max(peak[phase][0], most[0]), max(peak[phase][1], most[1]))

    phases = _Phases(sum(one.requires_grad for name, one in module.named_parameters() if name in blocks), ends)
    for name, one in module.named_parameters():
        if one.requires_grad:
            one.register_post_accumulate_grad_hook(phases.arrived(name in blocks))  # type: ignore[no-untyped-call]
    batch = full_batch(shape, catalog)
    lookup = _lookup(module)
    if lookup is not None:
        rows = _rows(module, batch)
        leaf = Hollow(torch.empty(len(rows), lookup.embedding_dim, device="meta")).requires_grad_()
        leaf.register_post_accumulate_grad_hook(phases.arrived(False))  # type: ignore[no-untyped-call]
        count.leave_out(leaf)
        lookup.hold(rows, leaf)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that all is computed here, where it is counted
    try:
        with count, only_different():
            loss_sum, _ = module(batch)
            ends("forward")
            alive = sum(count.alive.values())
            count.backward = True
            if isinstance(loss_sum, Hollow) and loss_sum.requires_grad:
                loss_sum.backward()  # type: ignore[no-untyped-call]
            ends(phases.now)
    finally:
        torch.set_num_threads(threads)
    return float(alive), peak


class _Phases:
    """Where a backward pass is: it reaches the blocks with their first gradient, and has left them with their last."""

    def __init__(self, num_of_blocks: int, ends: Any) -> None:
        self.now, self._left, self._ends = "loss", num_of_blocks, ends

    def arrived(self, in_block: bool) -> Any:
        """A hook for a parameter: hands its gradient on, and notes how far the pass is."""

        def hook(parameter: torch.Tensor) -> None:
            self._ends(self.now)
            if in_block:
                self._left -= 1
                self.now = "blocks" if self._left else "embeddings"
            parameter.grad = None

        return hook


def _of_blocks(model: Model) -> set[str]:
    """Names, in a Step, of the parameters of the groups that a model has several of."""
    members = {
        id(one)
        for group, parameters in model.layer_groups().items()
        if group.startswith("blocks.")
        for one in parameters
    }
    return {f"model.{name}" for name, one in model.named_parameters() if id(one) in members}


def full_batch(shape: tuple[int, int], catalog: Catalog, seed: int = 0) -> Batch:
    """B histories of L events of items drawn evenly."""
    rows, length = shape
    events = rows * (length + 1)
    rng = np.random.default_rng(seed)
    histories = Histories(
        offsets=np.arange(rows + 1) * (length + 1),
        item_row=rng.integers(NUM_RESERVED, max(NUM_RESERVED + 1, catalog.num_items), events).astype(np.int32),
        event=np.ones(events, np.int8),
        time_ms=np.arange(events) * 60_000,
        query_offsets=np.zeros(events + 1, np.int64),
        query_tokens=np.zeros(0, np.int32),
        user_row=np.arange(rows, dtype=np.int32),
        value=np.ones(events, np.float32),
        key=rng.integers(0, 2**62, rows),
    )
    batch = train_batch(histories, length, catalog.has_clock, np.array([1], np.int8), 1)
    return _with_users(batch, catalog)


def _with_users(batch: Batch, catalog: Catalog) -> Batch:
    """The batch with the unknown user's features."""
    categories = sum(feature.size > 0 for feature in catalog.user_features)
    rows = len(batch.length_B)
    batch.user_codes_BK = torch.ones(rows, categories, dtype=torch.int64)
    batch.user_numbers_BG = torch.zeros(rows, len(catalog.user_features) - categories)
    return batch


def _logits_bytes(job: Job, catalog: Catalog, num_positions: int) -> int:
    """fp32 scores that the loss holds at once: at most ``max_logits``, and on a CPU what its cache likes."""
    from distft.losses.chunks import slices

    most = int(getattr(job.loss, "max_logits", 2_000_000))
    width = catalog.num_items if job.loss.kind == "softmax" else int(getattr(job.loss, "num_negatives", 1)) + 1
    chunk = next(iter(slices(num_positions, width, most, torch.device("cpu"))))
    return 4 * width * int(chunk.stop - chunk.start)
