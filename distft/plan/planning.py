"""What a training will need, for every ZeRO stage and offload, and which of them is the cheapest that fits.

Enters: a job, the catalogue of its dataset (or its size), the memory of a device, a number of workers. Leaves: a
``Plan``. Surprising choice: settings are tried in the order of what they cost in time, not in memory, and the first
that fits is proposed: whoever has room should not pay for what saves it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from distft.data.encode import Encoder
from distft.deepspeed_keys import train_misfits
from distft.errors import UsageError
from distft.job import Job
from distft.plan.passes import Measured, measured
from distft.plan.states import Memory, largest_layer, memory, moments_of
from distft.schema import EVENT_TYPES, NUM_RESERVED, Catalog
from distft.sections.train import Finetune, Train
from distft.storage import Storage
from distft.train.freeze import names_by_group, selected

PROCESS_BYTES = 700_000_000
"""A worker that has imported everything and done nothing, on a CPU (measured: 520 to 580 MB, and Ray's part)."""
CONTEXT_BYTES = 800_000_000
"""What CUDA and NCCL take of a GPU (not measured: there was none)."""
EVENT_BYTES = 25
"""An event of the training rows that a worker holds: item, type, time, query's place, value."""
ORDER = (
    *((stage, "none") for stage in range(4)),
    *((stage, "cpu") for stage in (1, 2, 3)),
    *((stage, "nvme") for stage in (2, 3)),
)
"""Settings from the fastest to the slowest: more is exchanged between workers, then with the host, then with files."""
MAX_WORKERS = 4096


@dataclass(frozen=True)
class Setting:
    """One choice of ``train.zero`` and what a worker needs with it, its process included."""

    stage: int
    offload: str
    num_workers: int
    memory: Memory
    device_bytes: int
    host_bytes: int

    def fits(self, available_bytes: int | None) -> bool:
        """True if the device has room for it; None is a device of which nothing is known."""
        return available_bytes is None or self.device_bytes <= available_bytes

    @property
    def words(self) -> str:
        """As the job file would say it."""
        offload = "" if self.offload == "none" else f" with train.zero.offload {self.offload}"
        return f"train.zero.stage {self.stage}{offload}"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        parts = {"device": dict(self.memory.device), "host": dict(self.memory.host)}
        sizes = {
            "device_bytes": self.device_bytes,
            "host_bytes": self.host_bytes,
            "state_bytes": self.memory.state_bytes,
        }
        return {"stage": self.stage, "offload": self.offload, "num_workers": self.num_workers, **sizes, **parts}


@dataclass(frozen=True)
class Plan:
    """What a training will need. ``wanted`` is the job's own setting, ``cheapest`` the first that fits, if any does.

    ``available_bytes``: of one worker's device; None if nothing is known of it. ``enough``: where nothing fits with so
    many workers, the cheapest setting with the fewest workers that would.
    """

    on_gpu: bool
    num_items: int
    measured: Measured
    settings: tuple[Setting, ...]
    wanted: Setting
    available_bytes: int | None
    cheapest: Setting | None
    enough: Setting | None
    checkpoint_bytes: int
    dataset_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        found, chosen = self.measured, {"cheapest": self.cheapest, "enough": self.enough, "wanted": self.wanted}
        return {
            "device": "gpu" if self.on_gpu else "cpu",
            "available_bytes": self.available_bytes,
            "num_items": self.num_items,
            "parameters": found.num_trained + found.num_frozen,
            "trained_parameters": found.num_trained,
            "item_table_bytes": self.item_table_bytes,
            "item_table": self._table(),
            "largest_layer_bytes": 4 * largest_layer(found),
            "activation_bytes": found.activation_bytes,
            "micro_batch_bytes": found.pass_bytes,
            "logits_bytes": found.logits_bytes,
            "micro_batch": {"rows": found.rows, "length": found.length},
            "checkpoint_bytes": self.checkpoint_bytes,
            "dataset_bytes": self.dataset_bytes,
            "settings": [one.to_json() for one in self.settings],
            **{name: one.to_json() if one else None for name, one in chosen.items()},
        }

    @property
    def item_table_bytes(self) -> int:
        """fp32 bytes of the tables that have a row for each item, a sharded one whole."""
        sharded = self.measured.table
        return (4 * sharded.dim * sharded.rows if sharded else 0) + 4 * sum(
            one.numel for one in self.measured.parameters if self._is_table(one.numel, one.name)
        )

    def _table(self) -> dict[str, Any]:
        """Where the table of items lies, and of a sharded one what a worker holds."""
        table, need = self.measured.table, self.wanted.memory
        if table is None:
            return {"placement": "replicated"}
        worker = {"rows": table.held(self.wanted.num_workers), "looked_up_rows": table.looked_up}
        parts = {f"{part}_bytes": need.part(part) for part in ("table", "table_state", "looked_up")}
        return {"placement": "sharded", "rows": table.rows, "dim": table.dim, "worker": worker | parts}

    def _is_table(self, numel: int, name: str) -> bool:
        return name.endswith("weight") and numel % self.num_items == 0 and numel >= self.num_items and "item" in name


def planned(
    job: Job, catalog: Catalog, num_workers: int, available_bytes: int | None, on_gpu: bool, num_events: int = 0
) -> Plan:
    """The plan of a job's ``train`` section. ``num_events``: of the training rows, if they are known."""
    found = measured(job, catalog, num_workers, frozen_names(job, catalog))
    dataset_bytes = EVENT_BYTES * num_events // num_workers

    def setting(stage: int, offload: str, workers: int) -> Setting:
        train = _with_zero(job.train, stage, offload)
        need = memory(found, train, workers, on_gpu)
        if on_gpu:
            host = need.host_bytes + PROCESS_BYTES + dataset_bytes
            return Setting(stage, offload, workers, need, need.device_bytes + CONTEXT_BYTES, host)
        whole = need.device_bytes + PROCESS_BYTES + dataset_bytes
        return Setting(stage, offload, workers, need, whole, whole)

    able = [(stage, offload) for stage, offload in ORDER if _can(job, stage, offload)]
    settings = tuple(setting(stage, offload, num_workers) for stage, offload in able)
    wanted = setting(job.train.zero.stage, job.train.zero.offload, num_workers)
    cheapest = next((one for one in settings if one.fits(available_bytes)), None)
    return Plan(
        on_gpu=on_gpu,
        num_items=catalog.num_items,
        measured=found,
        settings=settings,
        wanted=wanted,
        available_bytes=available_bytes,
        cheapest=cheapest,
        enough=cheapest or next(_enough(setting, able, num_workers, available_bytes), None),
        checkpoint_bytes=(4 + 4 * moments_of(job.train)) * found.num_trained
        + 4 * found.num_frozen
        + (4 * (found.table.dim + found.table.state_numbers) * found.table.rows if found.table else 0),
        dataset_bytes=dataset_bytes,
    )


def _enough(setting: Any, able: list[tuple[int, str]], num_workers: int, available: int | None) -> Iterator[Setting]:
    """Settings that fit, with twice as many workers, and twice as many again."""
    workers = 2 * num_workers
    while workers <= MAX_WORKERS:
        for stage, offload in able:
            tried = setting(stage, offload, workers)
            if tried.fits(available):
                yield tried
        workers *= 2


def _with_zero(train: Train, stage: int, offload: str) -> Train:
    zero = train.zero.model_copy(update={"stage": stage, "offload": offload})
    return train.model_copy(update={"zero": zero})


def _can(job: Job, stage: int, offload: str) -> bool:
    """True if DeepSpeed and the model can do this."""
    if job.model.retrieval == "pair" and stage == 3:
        return False
    return not any(misfit.path != ("deepspeed",) for misfit in train_misfits(_with_zero(job.train, stage, offload)))


def frozen_names(job: Job, catalog: Catalog) -> frozenset[str]:
    """Names of the model's parameters that a fine-tuning does not train, at its beginning."""
    if not isinstance(job.train, Finetune):
        return frozenset()
    with torch.device("meta"):
        groups = names_by_group(job.model.build(catalog))
    return frozenset(selected(job.train.freeze, "finetune.freeze", groups))


def known_catalog(job: Job, dataset: Storage | None, num_items: int | None = None) -> tuple[Catalog, int] | None:
    """(The catalogue, events of the training rows): of the prepared dataset, else of so many items and 0.

    A made-up shop tells its number of items itself. None where nothing is known of it.
    """
    if num_items is None and dataset is not None and dataset.manifest("dataset") is not None:
        stats = dataset.read_json("stats.json") if dataset.exists("stats.json") else {}
        return Encoder.of_dataset(dataset).catalog(), int(stats.get("kept", 0))
    if num_items is None:
        sizes = [getattr(source, "num_items", None) for source in job.data.events]
        if None in sizes or not sizes:
            return None
        num_items = sum(size for size in sizes if size is not None)
    names = {name for source in job.data.events for name in source.event_names() if name in EVENT_TYPES}
    catalog = Catalog(num_items=num_items + NUM_RESERVED, num_events=len(names) + 1, num_query_tokens=0, has_clock=True)
    return catalog, 0


def refuse(plan: Plan, key: str = "train.zero") -> None:
    """Raises UsageError for a training whose own setting does not fit on its device."""
    available = plan.available_bytes
    if available is None or plan.wanted.fits(available):
        return
    wanted, device = plan.wanted, "GPU" if plan.on_gpu else "worker's share of the memory"
    what = (
        f"A worker needs {gigabytes(wanted.device_bytes)} with {wanted.words} and {wanted.num_workers} "
        f"worker{'s' if wanted.num_workers > 1 else ''}, and the {device} is {gigabytes(available)}"
    )
    if plan.enough is None:
        batch = gigabytes(plan.measured.pass_bytes)
        whole = plan.measured.table is None and plan.item_table_bytes > available // 2
        share = ", or share the table of items out with model.item_table: {placement: sharded}" if whole else ""
        least = f"less than that: a micro-batch of {plan.measured.rows} histories alone computes with {batch}"
        raise UsageError(
            what,
            least,
            f"Lower train.max_tokens_per_micro_batch, set train.activation_checkpointing{share}, or a smaller model.",
        )
    best = plan.enough
    more = f" and scaling.num_workers {best.num_workers}" if best.num_workers != wanted.num_workers else ""
    remedy = f"The cheapest setting that fits is {best.words}{more}: {gigabytes(best.device_bytes)}."
    raise UsageError(what, "", remedy.replace("train.zero", key))


def gigabytes(size: float) -> str:
    """Bytes in GB, or in MB where these are few."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{math.ceil(size / 1e6):,} MB"


def parsed_bytes(text: str) -> int:
    """Bytes of "80GB", "80GiB", "512MB". Raises UsageError."""
    units = {"": 1, "b": 1, "mb": 10**6, "mib": 2**20, "gb": 10**9, "gib": 2**30, "tb": 10**12, "tib": 2**40}
    number = text.strip().rstrip("BbGgIiMmTt")
    unit = text.strip()[len(number) :].lower()
    try:
        size = float(number) * units[unit]
    except (ValueError, KeyError):
        raise UsageError(f"--device-memory is {text!r}", "a size such as 80GB or 512MiB") from None
    if not 0 < size < 2**60:
        raise UsageError(f"--device-memory is {text!r}", "a size such as 80GB or 512MiB")
    return int(size)
