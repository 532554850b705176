"""What every training worker runs: restore, step, validate, checkpoint, report.

Enters: a job, the storage of its run with a dataset, one process of a process group that is up. Leaves:
checkpoints, metrics.jsonl and best.json in the stage's folder. Surprising choice: torch's generator is seeded anew
for every step from (seed, step, rank), so that no generator state has to be saved to resume bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from distft.data.augment import changed, mask_items
from distft.data.collate import Side, example_batch, train_batch
from distft.data.encode import Encoder
from distft.data.ragged import concat
from distft.data.shards import TrainReader
from distft.errors import NotFiniteError, TrainingError, UsageError
from distft.job import Job
from distft.models.weights import BASE, MODEL_PREFIX, read_base
from distft.schema import Batch, Histories, lower_is_better
from distft.sections.train import Finetune, Train
from distft.storage import Storage
from distft.train.base import base_sha256
from distft.train.checkpoint import Checkpoint, load_optimizer, load_weights, newest, restored_progress
from distft.train.engine import Engine
from distft.train.journal import Journal
from distft.train.position import here
from distft.train.prefetch import Prefetch
from distft.train.saving import Saver, write_best
from distft.train.settings import learning_rate
from distft.train.sharded_table import ShardedTable
from distft.train.start import Start, start
from distft.train.step import Step, train_step
from distft.train.validation import Validation, watched_metric
from distft.train.window import Window

LOG_STEPS = 50
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """How a training ended. ``best_metric`` is None where there is no validation split."""

    best_metric: float | None
    best_step: int
    epochs: int
    steps: int
    stopped_early: bool


def num_threads(job: Job) -> int:
    """Threads of one worker of a job."""
    return max(1, int(job.scaling.cpus_per_worker))


def ray_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """The function that Ray Train calls in every worker; rank 0's return value comes back to the driver."""
    import ray.train
    import ray.train.torch

    torch.set_num_threads(num_threads(config["job"]))
    device = torch.device("cpu")
    if config["use_gpu"]:
        device = ray.train.torch.get_device()
        torch.cuda.set_device(device)
    try:
        result = Loop(config["job"], config["root"], config["stage"], device, ray.train.report).run()
    except (TrainingError, UsageError) as error:
        # All ranks meet these at the same point, and would meet them again: handed back, not raised, Ray does
        # not start the workers anew.
        return {"error": error, "num_workers": dist.get_world_size()}
    return asdict(result) if dist.get_rank() == 0 else None


class Loop:
    """One worker's share of one attempt at a training."""

    def __init__(self, job: Job, root: Storage, stage: str, device: torch.device, report: Report) -> None:
        self.job, self.folder, self.dataset, self.report = job, root / stage, root / "dataset", report
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.metric = watched_metric(job)
        here.restart()
        here.at("reading of the dataset")
        self.encoder = Encoder.of_dataset(self.dataset)
        if job.train.baskets and not self.encoder.has_clock:
            raise UsageError(
                "train.baskets is true, and the log has no times",
                "a log that tells which events share a time",
                "Leave train.baskets out.",
            )
        self.reader = TrainReader(
            self.dataset,
            seed=job.seed,
            rank=self.rank,
            world_size=self.world_size,
            num_streams=job.train.num_streams,
            batch_size=job.train.batch_size,
            windows=job.train.windows,
            max_history=job.model.max_history,
            target_codes=self.encoder.target_codes,
        )
        self.side = Side.of(self.encoder, self.dataset if job.model.uses_users else None)
        self.empty = self._collate(concat([]))
        self.prefetch = Prefetch(self._step_batches, self.reader.steps_per_epoch, job.train.epochs, device)
        self.total_steps = job.train.epochs * self.reader.steps_per_epoch
        here.at("search for a checkpoint")
        found = newest(self.folder)
        self.progress = restored_progress(self.folder, found, self.metric)
        self.base: str | None = None
        self.engine = self._build(found, device)
        self.thaws = thaws(job.train)
        self.journal = Journal(self.folder, self.progress.step) if self.rank == 0 else None
        self.saver = self._saver()
        self.validation = Validation(job, self.dataset, self.encoder, self.side, self.metric)
        self.window = Window()
        self.save_wanted = False
        if self.journal:
            write_best(self.folder, self.progress)
            for sentence in found.passed_over if found else ():
                self.journal.warn(sentence, self.progress.step, self.saver.attempt)

    def _saver(self) -> Saver:
        before_commit = self.journal.commit if self.journal else None
        return Saver(self.folder, self.engine, self.job.train.checkpoint, before_commit, self.base)

    def _build(self, found: Checkpoint | None, device: torch.device) -> Engine:
        here.at("start of the engine", self.progress.step)
        section = self.job.model.item_table
        catalog = replace(self.encoder.catalog(), has_item_table=not section.is_sharded)
        torch.manual_seed(self.job.seed)
        model = self.job.model.build(catalog)
        module = Step(model, self.job.loss.build(catalog, model.state_dim))
        if section.is_sharded:
            module.table = ShardedTable.of(model, section, self.job.train, self.job.seed, device)
        module.model.recompute = self.job.train.activation_checkpointing
        started = self._start(module)
        weights = load_weights(found, module, started.thawed if started else ()) if found else {}
        engine = Engine(module, self.job.train, device, started.rate_factors if started else {})
        if found:
            load_optimizer(found, engine, weights)
        return engine

    def _start(self, module: Step) -> Start | None:
        """Gives a fine-tuning its base's weights, and freezes; None for any other training."""
        section = self.job.train
        if not isinstance(section, Finetune):
            return None
        self.base = base_sha256(self.folder)
        tensors = read_base(self.folder / BASE, self.base)
        weights = {name.removeprefix(MODEL_PREFIX): one for name, one in tensors.items()}
        return start(module, weights, self.encoder, section, self.progress.epoch)

    def _thaw(self) -> None:
        """Goes on with more that trains: from the checkpoint just written, as a restart would."""
        self.saver.drain()
        self.saver.close()
        self.engine.close()
        self.engine = self._build(newest(self.folder), self.engine.device)
        self.saver = self._saver()

    # -- the whole -----------------------------------------------------------------------------------------

    def run(self) -> TrainResult:
        """Trains from the cursor to the last epoch, or until early stopping."""
        try:
            self._train()
            self.saver.drain()
        finally:
            self.close()
        progress = self.progress
        value, stopped = progress.best_value, self.stopped_early
        return TrainResult(value, progress.best_step, progress.epoch, progress.step, stopped)

    def _train(self) -> None:
        progress, train = self.progress, self.job.train
        while progress.epoch < train.epochs and not self.stopped_early:
            self._train_epoch()
            progress.epoch, progress.epoch_step = progress.epoch + 1, 0
            due = progress.epoch % train.validate_.every_epochs == 0 or progress.epoch == train.epochs
            metrics = self.validation.score(self.engine) if due else {}
            self._judge(metrics, due)
            self._save({**metrics, "step": progress.step, "epoch": progress.epoch} if metrics else None)
            if progress.epoch in self.thaws and not self.stopped_early:
                self._thaw()

    def timed(self, num_steps: int) -> list[float]:
        """Seconds of each of the next steps of this epoch, or of as many as it has; nothing of them is saved."""
        seconds = []
        for _ in range(min(num_steps, self.reader.steps_per_epoch - self.progress.epoch_step)):
            started = time.perf_counter()
            self._train_step()
            seconds.append(time.perf_counter() - started)
        return seconds

    def close(self) -> None:
        """Ends the threads and frees the engine; for the end of a training, also a bad one."""
        self.prefetch.close()
        self.saver.close()
        self.engine.close()

    @property
    def stopped_early(self) -> bool:
        """True once as many validations as the patience allows have brought nothing better."""
        rule = self.job.train.early_stopping
        return rule is not None and self.progress.stale >= rule.patience

    def _train_epoch(self) -> None:
        progress, every = self.progress, self.job.train.checkpoint.every_steps
        self.window.restart()
        while progress.epoch_step < self.reader.steps_per_epoch:
            self._train_step()
            self.saver.poll()
            if self.window.steps >= LOG_STEPS:
                self._log_window()
            due = progress.step % every == 0 or self.save_wanted
            if due and progress.epoch_step < self.reader.steps_per_epoch:
                self._save()
        self._log_window()  # before the validation, whose time is not the steps'

    def _train_step(self) -> None:
        progress, train = self.progress, self.job.train
        started = time.perf_counter()
        here.at("reading", progress.step)
        batches = self.prefetch.batches(progress.epoch, progress.epoch_step)
        waited = time.perf_counter() - started
        _seed_torch(_key(self.job.seed, progress.step, self.rank), self.engine.device)
        rate = learning_rate(train, progress.step, self.total_steps)
        result = train_step(self.engine, batches, self.empty, progress.step, rate)
        self.save_wanted = result.save_wanted
        here.taken += 1
        self.window.add(result, rate, waited)
        progress.step += 1
        progress.epoch_step += 1

    def _step_batches(self, epoch: int, step: int) -> list[Batch]:
        rows = changed(self.reader.step_rows(epoch, step), self.job.train.augment)
        micro = self.reader.micro_batches(rows, self.job.train.max_tokens_per_micro_batch)
        step_key = self.reader.step_key(epoch, step)
        batches = [self._collate(histories, step_key) for histories in micro if len(histories)]
        for batch in batches:
            mask_items(batch, self.job.train.augment.mask)
        return batches

    def _collate(self, histories: Histories, step_key: int = 0) -> Batch:
        encoder, size, train = self.encoder, self.job.model.max_history, self.job.train
        if train.windows == "each":
            return example_batch(histories, size, encoder.has_clock, step_key, self.side)
        return train_batch(histories, size, encoder.has_clock, encoder.target_codes, step_key, train.baskets, self.side)

    def _judge(self, metrics: dict[str, float], due: bool) -> None:
        """Notes whether this epoch's weights are the best so far; without a validation split the latest are."""
        progress = self.progress
        if metrics:
            value, best = metrics[self.metric], progress.best_value
            if not np.isfinite(value):
                raise NotFiniteError(f"{self.metric} is {value} after epoch {progress.epoch}", "a finite number")
            better = best is None or (value < best if lower_is_better(self.metric) else value > best)
            progress.stale = 0 if better else progress.stale + 1
            if better:
                progress.best_value = value
            if self.journal:
                self.journal.write(kind="valid", step=progress.step, epoch=progress.epoch, **metrics)
        else:
            better = due and progress.best_value is None
        if better:
            progress.best_step, progress.best_epoch = progress.step, progress.epoch

    # -- what is written -----------------------------------------------------------------------------------

    def _save(self, report: dict[str, Any] | None = None) -> None:
        """Starts a checkpoint; ``report`` is reported when it is committed."""
        step = self.progress.step
        here.at("checkpoint", step)
        here.save_wanted = False

        def tell(path: str) -> None:
            here.saved_step = step
            if report is not None:
                here.at("report to Ray")
                self.report({**report, "checkpoint_path": path})

        self._log_window()
        self.saver.save(self.progress, tell)

    def _log_window(self) -> None:
        if self.journal and self.window.steps:
            place = {"step": self.progress.step, "epoch": self.progress.epoch + 1, "total_steps": self.total_steps}
            self.journal.write(kind="train", **place, **self.window.line())
        self.window.restart()


def thaws(train: Train) -> set[int]:
    """The numbers of epochs after which more trains."""
    return {one.after_epochs for one in train.unfreeze} if isinstance(train, Finetune) else set()


def _key(seed: int, step: int, rank: int) -> int:
    """A seed of torch's generator for one step of one rank."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _seed_torch(seed: int, device: torch.device) -> None:
    """Seeds the generators that a step draws from.

    ``torch.manual_seed`` would do, but notes a stack trace for every kind of device that is not there, for ever:
    a millisecond a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
