"""Sharded checkpoints in safetensors and JSON: found, verified and read, by any number of ranks at any ZeRO stage.

Enters: ``checkpoints/step-<n>/``, where every rank has written the flat fp32 slices of weights and optimiser state
that it owned, and rank 0 the state (progress, shapes, which file holds what) and, last, the manifest: what it does
not list does not exist. Leaves: a module with these weights, and an engine with that state. Surprising choice:
weights are restored before DeepSpeed starts, into the plain module, so that every ZeRO stage takes them over in its
own way. ``saving.py`` writes them. See docs/decisions/0003-checkpoints-without-pickle.md.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distft.errors import ArtefactError, DamagedError, DistftError
from distft.models.weights import assemble, read_slices, read_state, table_files
from distft.storage import MANIFEST, Manifest, Storage
from distft.train.engine import Engine, Slice
from distft.train.position import here
from distft.train.sharded_table import ShardedTable
from distft.train.tensorfile import read_rows

FOLDER = "checkpoints"
LATEST = "latest.json"
"""Names the checkpoint committed last, so that its loss can be told from its never having been."""

_NAME = re.compile(r"^step-([0-9]+)$")
_log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where the training is, and what it must remember: saved with every checkpoint.

    ``epoch`` and ``epoch_step`` are the cursor: the next step to take. ``step`` counts optimiser steps over all
    epochs. ``best_value``, of ``metric``, is None before the first validation; ``stale`` counts validations since
    the best one.
    """

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    metric: str = ""
    best_value: float | None = None
    best_step: int = 0
    best_epoch: int = 0
    stale: int = 0


@dataclass
class Checkpoint:
    """A committed checkpoint, found and opened: its folder, manifest and state.

    ``passed_over``: a sentence for each later checkpoint that is damaged or lost.
    """

    storage: Storage
    manifest: Manifest
    state: dict[str, Any] = field(repr=False)
    passed_over: tuple[str, ...] = ()

    @property
    def progress(self) -> Progress:
        """Where the training was."""
        return Progress(**self.state["progress"])


# -- finding -----------------------------------------------------------------------------------------------


def committed(root: Storage) -> list[str]:
    """Names of the checkpoints in ``root`` that have a manifest, newest first."""
    found = {path.split("/", 1)[0] for path in root.list() if path.endswith(f"/{MANIFEST}") and path.count("/") == 1}
    return sorted((name for name in found if _NAME.match(name)), key=step_of, reverse=True)


def step_of(name: str) -> int:
    """The step in a checkpoint's name; -1 for any other name."""
    match = _NAME.match(name)
    return int(match.group(1)) if match else -1


def latest(folder: Storage) -> str | None:
    """Where the newest committed checkpoint of a training lies; its bytes are not looked at. None before the first."""
    names = committed(folder / FOLDER)
    return f"{folder}/{FOLDER}/{names[0]}" if names else None


def newest(folder: Storage) -> Checkpoint | None:
    """The newest checkpoint of which every byte is as it was written; None if none was ever committed.

    One that is damaged or lost is passed over, with a warning. Collective: rank 0 looks, and all ranks open the one
    that it found. Raises DamagedError, on every rank, where all are damaged: a training does not start anew by itself.
    """
    found, passed_over = from_first(_look(folder) if dist.get_rank() == 0 else None)
    if found is not None:
        storage = folder / FOLDER / found
        return Checkpoint(storage, *read_state(storage), tuple(passed_over))
    if passed_over:
        raise DamagedError(
            f"No checkpoint in {folder}/{FOLDER} can be used: {' '.join(passed_over)}",
            "one that is as it was written",
            "Restore one from a copy, or start this training anew with --force, which removes what is there.",
        )
    return None


def _look(folder: Storage) -> tuple[str | None, list[str]]:
    """The newest whole checkpoint, and a sentence for each that had to be passed over."""
    root, passed_over = folder / FOLDER, []
    names = committed(root)
    lost = _latest(folder)
    if lost and step_of(lost) > max(map(step_of, names), default=-1):
        passed_over.append(f"The checkpoint {lost} was committed, and its {MANIFEST} is missing.")
    found = None
    for name in names:
        try:
            _verify(root / name, name)
        except DistftError as error:
            passed_over.append(f"The checkpoint {name} is damaged: {error}")
        else:
            found = name
            break
    for sentence in passed_over:
        _log.warning("%s The one before it is used." if found else "%s", sentence)
    return found, passed_over


def _latest(folder: Storage) -> str | None:
    """The name of the checkpoint committed last, as far as that is known."""
    if not folder.exists(LATEST):
        return None
    try:
        value = folder.read_json(LATEST)
    except ArtefactError:
        return None  # damaged itself; the checkpoints speak for themselves
    name = str(value.get("checkpoint") if isinstance(value, dict) else "").rpartition("/")[2]
    return name if _NAME.match(name) else None


def _verify(storage: Storage, name: str) -> None:
    """Raises a DistftError unless every file is as it was written, and belongs to the step that its folder names."""
    manifest, _ = read_state(storage)
    if manifest.info.get("step") != step_of(name):
        raise ArtefactError(f"it holds step {manifest.info.get('step')}", name, "Restore it from a copy.")
    for file, expected in sorted(manifest.files.items()):
        here.beat()
        storage.verify_file(file, expected)


def restored_progress(folder: Storage, found: Checkpoint | None, metric: str) -> Progress:
    """Where a training goes on: what the checkpoint remembers, less a best one that is no longer true or there.

    What was best by another metric says nothing of this one. And where a later checkpoint was damaged, the one that
    was the best before it may have been removed already. Collective.
    """
    if found is None:
        return Progress(metric=metric)
    progress = found.progress
    there = from_first(f"step-{progress.best_step}" in committed(folder / FOLDER))
    if progress.metric != metric or not there:
        return replace(progress, metric=metric, best_value=None, best_step=0, best_epoch=0, stale=0)
    return progress


# -- restoring ---------------------------------------------------------------------------------------------


def load_weights(checkpoint: Checkpoint, module: nn.Module, thawed: Collection[str] = ()) -> dict[str, Tensor]:
    """Puts the weights and buffers into a module that DeepSpeed has not wrapped yet; gives them in fp32.

    Of a fine-tuning these are the ones that train; those that are ``thawed`` may have been frozen when the checkpoint
    was written, and are then the base's. Raises ArtefactError where names or shapes differ.
    """
    tensors = assemble(checkpoint.storage, checkpoint.manifest, checkpoint.state, tables=False)
    table = getattr(module, "table", None)
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    left_out = frozen if checkpoint.state.get("base") else set()
    left_out = left_out | {name for name in thawed if name not in tensors}
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if name not in left_out}
    saved = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    own |= {} if table is None else {table.name: table.shape}
    sharded = checkpoint.state.get("table")
    saved |= {sharded["name"]: tuple(checkpoint.state["shapes"][sharded["name"]])} if sharded else {}
    if own != saved:
        differing = sorted(name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name))
        raise ArtefactError(
            f"{checkpoint.storage} is of another model: {', '.join(differing[:5])} differ",
            "the model of this job",
            "Undo the change of the job, or train into another storage.",
        )
    module.load_state_dict(tensors, strict=not left_out)
    if table is not None:
        _load_table(checkpoint, table)
    return tensors


def _load_table(checkpoint: Checkpoint, table: ShardedTable) -> None:
    """Fills this rank's rows of a table and their state, a few of each file at a time.

    The bytes were verified when the checkpoint was found. Raises ArtefactError where the table was trained otherwise.
    """
    described = checkpoint.state.get("table") or {"optimizer": "a table on every worker", "steps": 0}
    if described["optimizer"] != table.rule.optimizer:
        raise ArtefactError(
            f"The items of {checkpoint.storage} were trained with {described['optimizer']}",
            f"{table.rule.optimizer}, on a sharded table",
            "Undo the change of model.item_table, or train into another storage.",
        )
    table.steps = int(described["steps"])
    for part in ("table", "optimizer-table"):
        for file, first, step in table_files(checkpoint.state, part):
            if not table.wants(first, step):  # with as many workers as wrote it, each reads its own file alone
                continue
            for kind, start, values in read_rows(checkpoint.storage, file):
                table.take(kind, first + step * start, step, values)


def load_optimizer(checkpoint: Checkpoint, engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """Fills the engine's optimiser state, step count and loss scale, and its fp32 weights at low precision."""
    state = checkpoint.state
    kind = engine.train_config.optimizer
    if state["optimizer"]["kind"] != kind:
        raise ArtefactError(
            f"{checkpoint.storage} was trained with {state['optimizer']['kind']}",
            kind,
            "Undo the change of train.optimizer, or train into another storage.",
        )
    held = list(engine.slices())
    for part in held:
        if part.name not in weights:
            continue  # it begins to train, and is as the engine found it
        low, high = part.offset, part.offset + part.length
        part.view(part.master).copy_(weights[part.name].reshape(-1)[low:high])
    _load_moments(checkpoint, engine, held)
    engine.loss_scale = state["loss_scale"]
    engine.rest()


@torch.no_grad()
def _load_moments(checkpoint: Checkpoint, engine: Engine, held: list[Slice]) -> None:
    by_name = {part.name: part for part in held}
    created = False
    for key, offset, values in read_slices(checkpoint.storage, checkpoint.manifest, checkpoint.state, "optimizer"):
        moment, name = key.split("/", 1)
        if not created:
            engine.create_optimizer_state(int(checkpoint.state["optimizer"]["steps"]))
            created = True
        part = by_name.get(name)
        if part is None:
            continue
        low, high = max(offset, part.offset), min(offset + values.numel(), part.offset + part.length)
        if low < high:
            own = engine.optimizer_state(part)[moment]
            own[low - part.offset : high - part.offset].copy_(values[low - offset : high - offset])


def from_first(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """Rank 0's value, on every rank of ``group``, or of all."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]
