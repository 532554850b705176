"""Saves checkpoints while the training goes on: copies at the step, writes and commits behind it.

Enters: an engine and the training's progress, at the same step on every rank. Leaves: a committed checkpoint, then
latest.json and best.json that name it, then the removal of what is no longer kept. Surprising choice: the ranks' writer
threads commit among themselves, over a process group of their own, so that a checkpoint is committed as soon as it is
written, whatever the training does meanwhile; the training only learns of it, at a step that all ranks agree on.

See docs/decisions/0003-checkpoints-without-pickle.md.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distft.errors import ArtefactError, DistftError, TrainingError
from distft.models.weights import sealed
from distft.sections.train import Checkpoint as Rules
from distft.storage import MANIFEST, Manifest, Storage
from distft.train.checkpoint import FOLDER, LATEST, Progress, committed, from_first, step_of
from distft.train.engine import Engine
from distft.train.position import here
from distft.train.tensorfile import write_tensors

BEST = "best.json"
PATIENCE = timedelta(days=1)
"""How long the ranks' writers wait for the slowest of them; one that died is noticed at once."""

KINDS = ("weights", "optimizer", "table", "optimizer-table")
"""Files that a rank writes: slices of parameters and of their optimiser state; rows of a sharded table and of its."""

Committed = Callable[[str], None]


@dataclass
class _Snapshot:
    """A checkpoint in flight: this rank's slices, copied, by the file of KINDS; and what is saved beside them."""

    progress: Progress
    tensors: dict[str, dict[str, Tensor]]
    offsets: dict[str, int]
    state: dict[str, Any]
    then: Committed | None

    @property
    def name(self) -> str:
        return f"step-{self.progress.step}"


class Saver:
    """Writes the checkpoints of one attempt into ``<folder>/checkpoints``; every rank holds one.

    At most one is in flight; its copy of the state stays allocated for the next one. File names carry the attempt, so
    that what an aborted attempt left in a folder is never taken for ours. ``before_commit`` is called on rank 0 before
    each commit: what it writes is then never behind the checkpoint. ``base``: SHA-256 of a fine-tuning's base, where
    what does not train lies.
    """

    def __init__(
        self,
        folder: Storage,
        engine: Engine,
        rules: Rules,
        before_commit: Callable[[], None] | None = None,
        base: str | None = None,
    ) -> None:
        self._base = base
        self.folder, self.root = folder, folder / FOLDER
        self.engine, self.rules = engine, rules
        self.attempt = from_first(uuid.uuid4().hex[:8])
        self._before_commit = before_commit
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if engine.world_size > 1 else None
        self._copies: dict[str, Tensor] = {}
        self._inflight: _Snapshot | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    # -- what the training calls, on every rank at the same step ---------------------------------------------

    def save(self, progress: Progress, then: Committed | None = None) -> None:
        """Starts a checkpoint of this moment, once the one before it is committed.

        ``then`` is called with its path on every rank, in ``save``, ``poll`` or ``drain``, once it is committed. If
        not ``asynchronous``, or where the state rests in files, that is before this returns. Raises TrainingError, on
        every rank, where a checkpoint could not be written.
        """
        self.drain()
        self._inflight = self._snapshot(replace(progress), then)
        self._thread = threading.Thread(target=self._work, args=(self._inflight,), daemon=True, name="checkpoint")
        self._thread.start()
        if self._waits:
            self.drain()
            self.engine.rest()

    def poll(self) -> None:
        """Ends the checkpoint in flight if it is committed, or failed, on every rank; raises as ``save`` does.

        To be called after every step: while one is in flight it costs a message of one number.
        """
        if self._thread is None:
            return
        ended = torch.tensor([float(not self._thread.is_alive())], device=self.engine.device)
        dist.all_reduce(ended, dist.ReduceOp.MIN)
        if ended.item():
            self.drain()

    def drain(self) -> None:
        """Waits until the checkpoint in flight, if there is one, is committed; raises as ``save`` does."""
        snapshot, failure = self._inflight, self._joined()
        if isinstance(failure, DistftError) and snapshot is not None:
            what = f"The checkpoint of step {snapshot.progress.step} was not written: {failure.what}"
            raise TrainingError(what, failure.expected, failure.remedy)
        if failure is not None:
            raise failure
        if snapshot is not None and snapshot.then is not None:
            snapshot.then(f"{self.root}/{snapshot.name}")

    def close(self) -> None:
        """Waits for the checkpoint in flight whatever becomes of it; for the end of a training, also a bad one."""
        self._joined()
        self._copies.clear()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _joined(self) -> Exception | None:
        if self._thread is not None:
            self._thread.join()
        failure, self._failure = self._failure, None
        self._thread = self._inflight = None
        return failure

    @property
    def _waits(self) -> bool:
        """True where the training waits; what rests in files may not fit into memory, and is written from there."""
        return self.engine.rests or not self.rules.asynchronous

    # -- the copy --------------------------------------------------------------------------------------------

    def _snapshot(self, progress: Progress, then: Committed | None) -> _Snapshot:
        """What this rank has of the state, on the host."""
        engine, rank = self.engine, self.engine.rank
        weights: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        offsets: dict[str, int] = {}
        for held in engine.slices():
            part = held.part(rank, engine.world_size) if engine.replicated else held
            if not part.length:
                continue
            offsets[part.name] = part.offset
            weights[part.name] = self._copy(part.name, part.view(part.master))
            for kind, values in engine.optimizer_state(part).items():
                key = f"{kind}/{part.name}"
                moments[key] = self._copy(key, values)
        for name, offset, values in engine.frozen_slices() if self._base is None else ():
            offsets[name] = offset
            weights[name] = self._copy(name, values.float() if values.is_floating_point() else values)
        if rank == 0:
            for name, buffer in engine.buffers.items():
                offsets[name] = 0
                weights[name] = self._copy(name, buffer.reshape(-1))
        tensors = {"weights": weights, "optimizer": moments, "table": {}, "optimizer-table": {}}
        for kind, values in engine.table.held() if engine.table is not None else ():
            file = "table" if kind == "weight" else "optimizer-table"
            tensors[file][kind] = self._copy(f"table/{kind}", values)
        return _Snapshot(progress, tensors, offsets, self._state(progress), then)

    def _copy(self, key: str, values: Tensor) -> Tensor:
        """The values in this rank's own memory, which is used again: fresh pages would cost more than the copy.

        Where the training waits, what a host holds is itself written, and needs no copy.
        """
        if self._waits and values.device.type == "cpu":
            return values.detach()
        copy = self._copies.get(key)
        if copy is None or copy.shape != values.shape or copy.dtype != values.dtype:
            pinned = self.engine.device.type == "cuda"
            copy = self._copies[key] = torch.empty(values.shape, dtype=values.dtype, pin_memory=pinned)
        return copy.copy_(values.detach())

    def _state(self, progress: Progress) -> dict[str, Any]:
        engine = self.engine
        left_out = engine.frozen.keys() if self._base else ()
        shapes = {name: list(shape) for name, shape in engine.shapes.items() if name not in left_out}
        shapes |= {name: list(buffer.shape) for name, buffer in engine.buffers.items()}
        table = engine.table
        shapes |= {table.name: list(table.shape)} if table is not None else {}
        described = {"name": table.name, "optimizer": table.rule.optimizer, "steps": table.steps} if table else None
        return {
            "table": described,
            "progress": vars(progress),
            "shapes": shapes,
            "optimizer": {"kind": engine.train_config.optimizer, "steps": engine.optimizer_steps},
            "loss_scale": engine.loss_scale,
            "base": self._base,
        }

    # -- the writer thread -----------------------------------------------------------------------------------

    def _work(self, snapshot: _Snapshot) -> None:
        """Writes, commits, and leaves in ``_failure`` what all ranks know then.

        Each rank takes part in both messages however it fared, because the others wait for it.
        """
        storage = self.root / snapshot.name
        here.writing = True
        mine = _attempted(lambda: self._write_slices(storage, snapshot))
        here.writing = False
        try:
            ranks = self._gathered(mine)
            failures = [one for one in ranks if isinstance(one, DistftError)]
            if not failures and self.engine.rank == 0:
                here.writing = True
                outcome = _attempted(lambda: self._commit(storage, snapshot, ranks))
                here.writing = False
                failures = [outcome] if isinstance(outcome, DistftError) else []
            self._failure = self._told(failures[0] if failures else None)
        except RuntimeError as error:
            self._failure = error  # a rank died: no agreement, and nothing that running on could mend
            return
        if self._failure is not None:
            with suppress(DistftError, OSError):
                self._withdraw(storage)

    def _gathered(self, mine: Any) -> list[Any]:
        ranks: list[Any] = [mine]
        if self._group is not None:
            ranks *= self.engine.world_size
            dist.all_gather_object(ranks, mine, group=self._group)
        return ranks

    def _told(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return value if self._group is None else from_first(value, self._group)

    def _write_slices(self, storage: Storage, snapshot: _Snapshot) -> dict[str, Any]:
        """Writes this rank's files; says what is in them."""
        written: dict[str, Any] = {"offsets": snapshot.offsets, **dict.fromkeys(KINDS), "files": {}}
        table = self.engine.table
        written["rows"] = None if table is None else {"first": table.rank, "step": table.world_size}
        for kind, tensors in snapshot.tensors.items():
            if tensors:
                file = written[kind] = self._file(kind)
                written["files"][file] = write_tensors(storage, file, tensors)
        return written

    def _commit(self, storage: Storage, snapshot: _Snapshot, ranks: list[dict[str, Any]]) -> None:
        engine, progress = self.engine, snapshot.progress
        if self._before_commit:
            self._before_commit()
        files = {name: described for rank in ranks for name, described in rank["files"].items()}
        parts = [{key: rank[key] for key in ("offsets", "rows", *KINDS)} for rank in ranks]
        state_file = f"state-{self.attempt}.json"
        storage.write_json(state_file, {**snapshot.state, "ranks": parts})
        files[state_file] = storage.describe(state_file)
        info = {
            "step": progress.step,
            "world_size": engine.world_size,
            "zero_stage": engine.train_config.zero.stage,
            "precision": engine.train_config.precision,
        }
        storage.write_json(MANIFEST, vars(sealed(Manifest("checkpoint", files, info=info))))
        self.folder.write_json(LATEST, {"checkpoint": f"{FOLDER}/{snapshot.name}"})
        write_best(self.folder, progress)
        for name in storage.list():
            if name not in files and name != MANIFEST:
                storage.delete(name)
        self._rotate(progress)

    def _rotate(self, progress: Progress) -> None:
        """Removes what is no longer kept: the checkpoint just committed, the ``keep`` latest and the best one stay.

        Nothing names the others any more. Folders of later steps are of a run that was turned back: they are removed
        too, with what never was committed.
        """
        older = [name for name in committed(self.root) if step_of(name) < progress.step]
        kept = {f"step-{progress.step}", best_name(self.folder), *older[: self.rules.keep - 1]}
        for name in {path.split("/", 1)[0] for path in self.root.list()} - kept:
            (self.root / name).delete(MANIFEST)  # first: a half-deleted checkpoint must not look whole
            self.root.delete_tree(name)

    def _withdraw(self, storage: Storage) -> None:
        """Removes this rank's files of a checkpoint that will not be committed: they may be what fills the disk."""
        if not storage.exists(MANIFEST):
            for kind in KINDS:
                storage.delete(self._file(kind))

    def _file(self, kind: str) -> str:
        return f"{kind}-{self.attempt}-{self.engine.rank:05d}.safetensors"


def best_name(folder: Storage) -> str:
    """The name of the checkpoint that best.json names; empty without one."""
    if not folder.exists(BEST):
        return ""
    try:
        return str(folder.read_json(BEST)["checkpoint"]).rpartition("/")[2]
    except ArtefactError:
        return ""  # damaged: the next best one writes it anew


def write_best(folder: Storage, progress: Progress) -> None:
    """Names the best checkpoint so far in best.json.

    Where the training knows of none, what is there stays, unless it names one that is lost, or later than this.
    """
    if not progress.best_step:
        named = best_name(folder)
        if named not in committed(folder / FOLDER) or step_of(named) > progress.step:
            folder.delete(BEST)
        return
    best = {
        "checkpoint": f"{FOLDER}/step-{progress.best_step}",
        "step": progress.best_step,
        "epoch": progress.best_epoch,
        "metric": progress.metric,
        "value": progress.best_value,
    }
    folder.write_json(BEST, best)


def _attempted(work: Callable[[], Any]) -> Any:
    """What the function returned, or the error that it ended with: a thread has nobody to raise it to."""
    try:
        return work()
    except DistftError as error:
        return error
    except Exception as error:
        return TrainingError(f"{type(error).__name__}: {error}")
