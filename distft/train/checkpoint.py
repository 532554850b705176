"""Sharded checkpoints in safetensors and JSON: written by any number of ranks, read by any other.

Enters: an engine and the training's progress. Leaves: ``checkpoints/step-<n>/``, where every rank has written the
flat fp32 slices of weights and optimiser state that it owns, and rank 0 the state (progress, shapes, which file
holds what) and, last, the manifest: what it does not list does not exist. Surprising choice: weights are restored
before DeepSpeed starts, into the plain module, so that every ZeRO stage takes them over in its own way.

See docs/decisions/0003-checkpoints-without-pickle.md.
"""

from __future__ import annotations

import hashlib
import logging
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save
from torch import Tensor, nn

from distft.errors import ArtefactError, DistftError
from distft.models.weights import assemble, read_slices, read_state
from distft.storage import MANIFEST, Manifest, Storage
from distft.train.engine import Engine, Slice

FOLDER = "checkpoints"
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
    """A committed checkpoint, found and opened: its folder, manifest and state."""

    storage: Storage
    manifest: Manifest
    state: dict[str, Any] = field(repr=False)

    @property
    def progress(self) -> Progress:
        """Where the training was."""
        return Progress(**self.state["progress"])


# -- saving ------------------------------------------------------------------------------------------------


class Saver:
    """Writes the checkpoints of one attempt into ``<folder>/checkpoints``; every rank holds one.

    File names carry the attempt, so that what an aborted attempt left in a folder is never taken for ours.
    """

    def __init__(self, folder: Storage, engine: Engine, keep: int) -> None:
        self.root = folder / FOLDER
        self.engine = engine
        self.keep = keep
        self.attempt = _from_first(uuid.uuid4().hex[:8])

    def save(self, progress: Progress) -> str:
        """Commits a checkpoint of this moment and gives its name.

        Collective: every rank calls it at the same step. When it returns, the checkpoint is committed.
        """
        name = f"step-{progress.step}"
        storage = self.root / name
        mine = self._write_slices(storage)
        gathered: list[Any] = [None] * self.engine.world_size
        dist.all_gather_object(gathered, mine)
        if self.engine.rank == 0:
            self._commit(storage, progress, gathered)
        dist.barrier()
        return name

    def _write_slices(self, storage: Storage) -> dict[str, Any]:
        """Writes this rank's two files; says what is in them."""
        engine, rank = self.engine, self.engine.rank
        weights: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        offsets: dict[str, int] = {}
        for held in engine.slices():
            part = held.part(rank, engine.world_size) if engine.replicated else held
            if not part.length:
                continue
            offsets[part.name] = part.offset
            weights[part.name] = _detached(part.view(part.master))
            moments |= {f"{key}/{part.name}": _detached(v) for key, v in engine.optimizer_state(part).items()}
        for name, offset, values in engine.frozen_slices():
            offsets[name] = offset
            weights[name] = _detached(values.float() if values.is_floating_point() else values)
        if rank == 0:
            for name, buffer in engine.buffers.items():
                offsets[name] = 0
                weights[name] = _detached(buffer.reshape(-1))
        written: dict[str, Any] = {"offsets": offsets, "weights": None, "optimizer": None, "files": {}}
        for kind, tensors in (("weights", weights), ("optimizer", moments)):
            if tensors:
                file = f"{kind}-{self.attempt}-{rank:05d}.safetensors"
                written[kind] = file
                written["files"][file] = _write(storage, file, save(tensors))
        return written

    def _commit(self, storage: Storage, progress: Progress, ranks: list[dict[str, Any]]) -> None:
        engine = self.engine
        shapes: dict[str, list[int]] = {name: list(shape) for name, shape in engine.shapes.items()}
        shapes |= {name: list(buffer.shape) for name, buffer in engine.buffers.items()}
        files = {name: described for rank in ranks for name, described in rank.pop("files").items()}
        state = {
            "progress": vars(progress),
            "shapes": shapes,
            "ranks": ranks,
            "optimizer": {"kind": engine.train_config.optimizer, "steps": engine.optimizer_steps},
            "loss_scale": engine.loss_scale,
        }
        state_file = f"state-{self.attempt}.json"
        storage.write_json(state_file, state)
        files[state_file] = storage.describe(state_file)
        info = {
            "step": progress.step,
            "world_size": engine.world_size,
            "zero_stage": engine.train_config.zero.stage,
            "precision": engine.train_config.precision,
        }
        storage.write_json(MANIFEST, vars(Manifest("checkpoint", files, info=info)))
        for name in storage.list():
            if name not in files and name != MANIFEST:
                storage.delete(name)

    def rotate(self, progress: Progress) -> None:
        """Removes what is no longer kept beside the checkpoint just saved: the latest ``keep`` and the best one stay.

        Called once nothing names the others any more. Folders of later steps are of a run that was turned back:
        they are removed too, with what never was committed.
        """
        if self.engine.rank != 0:
            return
        older = [name for name in committed(self.root) if _step(name) < progress.step]
        kept = {f"step-{progress.step}", f"step-{progress.best_step}", *older[: self.keep - 1]}
        for name in {path.split("/", 1)[0] for path in self.root.list()} - kept:
            (self.root / name).delete(MANIFEST)  # first: a half-deleted checkpoint must not look whole
            self.root.delete_tree(name)


def _detached(values: Tensor) -> Tensor:
    return values.detach().to("cpu", copy=True).contiguous()


def _write(storage: Storage, name: str, data: bytes) -> dict[str, Any]:
    storage.write_bytes(name, data)
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


# -- restoring ---------------------------------------------------------------------------------------------


def committed(root: Storage) -> list[str]:
    """Names of the checkpoints in ``root`` that have a manifest, newest first."""
    found = {path.split("/", 1)[0] for path in root.list() if path.endswith(f"/{MANIFEST}") and path.count("/") == 1}
    return sorted((name for name in found if _NAME.match(name)), key=_step, reverse=True)


def newest(folder: Storage) -> Checkpoint | None:
    """The newest checkpoint of which every byte is as it was written; None if there is none.

    A damaged one is named in a warning, and the one before it is taken. Collective: rank 0 looks, and all ranks
    open the one that it found.
    """
    root = folder / FOLDER
    found = _from_first(_verified(root) if dist.get_rank() == 0 else None)
    if found is None:
        return None
    return Checkpoint(root / found, *read_state(root / found))


def _verified(root: Storage) -> str | None:
    for name in committed(root):
        try:
            (root / name).verified("checkpoint")
            read_state(root / name)
        except DistftError as error:
            _log.warning("The checkpoint %s is damaged, the one before it is used. %s", name, error)
        else:
            return name
    return None


def load_weights(checkpoint: Checkpoint, module: nn.Module) -> dict[str, Tensor]:
    """Puts the weights and buffers into a module that DeepSpeed has not wrapped yet; gives them in fp32.

    Raises ArtefactError where names or shapes differ.
    """
    tensors = assemble(checkpoint.storage, checkpoint.manifest, checkpoint.state)
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    saved = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if own != saved:
        differing = sorted(name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name))
        raise ArtefactError(
            f"{checkpoint.storage} is of another model: {', '.join(differing[:5])} differ",
            "the model of this job",
            "Undo the change of the job, or train into another storage.",
        )
    module.load_state_dict(tensors)
    return tensors


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
        low, high = part.offset, part.offset + part.length
        part.view(part.master).copy_(weights[part.name].reshape(-1)[low:high])
    _load_moments(checkpoint, engine, held)
    engine.loss_scale = state["loss_scale"]


@torch.no_grad()
def _load_moments(checkpoint: Checkpoint, engine: Engine, held: list[Slice]) -> None:
    by_name = {part.name: part for part in held}
    created = False
    for key, offset, values in read_slices(checkpoint.storage, checkpoint.manifest, checkpoint.state, "optimizer"):
        moment, name = key.split("/", 1)
        if not created:
            kinds = _moment_names(checkpoint)
            engine.create_optimizer_state(kinds, int(checkpoint.state["optimizer"]["steps"]))
            created = True
        part = by_name.get(name)
        if part is None:
            continue
        low, high = max(offset, part.offset), min(offset + values.numel(), part.offset + part.length)
        if low < high:
            own = engine.optimizer_state(part)[moment]
            own[low - part.offset : high - part.offset].copy_(values[low - offset : high - offset])


def _moment_names(checkpoint: Checkpoint) -> set[str]:
    kind = checkpoint.state["optimizer"]["kind"]
    return {"momentum_buffer"} if kind == "sgd" else {"exp_avg", "exp_avg_sq"}


def _step(name: str) -> int:
    match = _NAME.match(name)
    return int(match.group(1)) if match else -1


def _from_first(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
