"""What every training worker runs: restore, step, validate, checkpoint, report.

Enters: a job, the storage of its run with a dataset, one process of a process group that is up. Leaves:
checkpoints, metrics.jsonl and best.json in the stage's folder. Surprising choice: torch's generator is seeded anew
for every step from (seed, step, rank), so that no generator state has to be saved to resume bit for bit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from distft.data.collate import history_batch, train_batch
from distft.data.encode import Encoder
from distft.data.ragged import concat
from distft.data.shards import TargetReader, Targets, TrainReader
from distft.errors import TrainingError, UsageError
from distft.evaluate.metrics import ranking_sums
from distft.job import Job
from distft.ranking import excluded_items
from distft.schema import NUM_RESERVED, Batch, Histories, lower_is_better
from distft.storage import Storage
from distft.train.checkpoint import FOLDER, Checkpoint, Progress, Saver, load_optimizer, load_weights, newest
from distft.train.engine import Engine
from distft.train.journal import Journal
from distft.train.settings import learning_rate
from distft.train.step import RankTargets, Step, StepResult, train_step

BEST = "best.json"
LOG_STEPS = 50
VALID_TOKENS = 16_384
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """How a training ended. ``best_metric`` is None where there is no validation split."""

    best_metric: float | None
    best_step: int
    epochs: int
    steps: int
    stopped_early: bool


def watched_metric(job: Job) -> str:
    """The validation metric that decides which checkpoint is best, and when to stop.

    Raises UsageError for a metric that validation does not compute.
    """
    if job.train.early_stopping is None:
        return f"ndcg@{10 if 10 in job.evaluate.k else max(job.evaluate.k)}"
    metric = job.train.early_stopping.metric
    if not re.match(r"^((hr|ndcg|mrr|recall|map)@[0-9]+|loss)$", metric):
        raise UsageError(
            f"train.early_stopping.metric is {metric}, which validation does not compute",
            "hr@k, ndcg@k, mrr@k, recall@k, map@k or loss",
            "Set train.early_stopping.metric to ndcg@10.",
        )
    return metric


def ray_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """The function that Ray Train calls in every worker; rank 0's return value comes back to the driver."""
    import ray.train
    import ray.train.torch

    torch.set_num_threads(config["num_threads"])
    device = torch.device("cpu")
    if config["use_gpu"]:
        device = ray.train.torch.get_device()
        torch.cuda.set_device(device)
    try:
        result = Loop(config["job"], config["root"], config["stage"], device, ray.train.report).run()
    except (TrainingError, UsageError) as error:
        # All ranks meet these at the same point, and would meet them again: handed back, not raised, Ray does
        # not start the workers anew.
        return {"error": error}
    return asdict(result) if dist.get_rank() == 0 else None


class Loop:
    """One worker's share of one attempt at a training."""

    def __init__(self, job: Job, root: Storage, stage: str, device: torch.device, report: Report) -> None:
        self.job, self.folder, self.dataset, self.report = job, root / stage, root / "dataset", report
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.metric = watched_metric(job)
        self.encoder = Encoder.of_dataset(self.dataset)
        self.reader = TrainReader(
            self.dataset,
            seed=job.seed,
            rank=self.rank,
            world_size=self.world_size,
            num_streams=job.train.num_streams,
            batch_size=job.train.batch_size,
            windows=job.train.windows,
            max_history=job.model.max_history,
        )
        self.empty = concat([])
        self.total_steps = job.train.epochs * self.reader.steps_per_epoch
        found = newest(self.folder)
        self.progress = found.progress if found else Progress()
        if self.progress.metric != self.metric:  # what was best by another metric says nothing of this one
            self.progress = replace(self.progress, metric=self.metric, best_value=None, best_step=0, stale=0)
        self.engine = self._build(found, device)
        self.saver = Saver(self.folder, self.engine, job.train.checkpoint.keep)
        self.journal = Journal(self.folder, self.progress.step) if self.rank == 0 else None
        self.window = Window()
        self._write_best()

    def _build(self, found: Checkpoint | None, device: torch.device) -> Engine:
        catalog = self.encoder.catalog()
        torch.manual_seed(self.job.seed)
        module = Step(self.job.model.build(catalog), self.job.loss.build(catalog))
        weights = load_weights(found, module) if found else {}
        engine = Engine(module, self.job.train, device)
        if found:
            load_optimizer(found, engine, weights)
        return engine

    # -- the whole -----------------------------------------------------------------------------------------

    def run(self) -> TrainResult:
        """Trains from the cursor to the last epoch, or until early stopping."""
        progress, train = self.progress, self.job.train
        while progress.epoch < train.epochs and not self.stopped_early:
            self._train_epoch()
            progress.epoch, progress.epoch_step = progress.epoch + 1, 0
            due = progress.epoch % train.validate_.every_epochs == 0 or progress.epoch == train.epochs
            metrics = self.validate() if due else {}
            self._judge(metrics, due)
            name = self._save()
            if metrics:
                self.report({**metrics, "step": progress.step, "epoch": progress.epoch, "checkpoint_path": name})
        self.engine.close()
        value, stopped = progress.best_value, self.stopped_early
        return TrainResult(value, progress.best_step, progress.epoch, progress.step, stopped)

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
            if self.window.steps >= LOG_STEPS:
                self._log_window()
            if progress.step % every == 0 and progress.epoch_step < self.reader.steps_per_epoch:
                self._save()
        self._log_window()  # before the validation, whose time is not the steps'

    def _train_step(self) -> None:
        progress, train = self.progress, self.job.train
        started = time.perf_counter()
        batches = self._step_batches(progress.epoch, progress.epoch_step)
        waited = time.perf_counter() - started
        torch.manual_seed(_key(self.job.seed, progress.step, self.rank))
        rate = learning_rate(train, progress.step, self.total_steps)
        result = train_step(self.engine, batches, self._collate(self.empty), progress.step, rate)
        self.window.add(result, rate, waited)
        progress.step += 1
        progress.epoch_step += 1

    def _step_batches(self, epoch: int, step: int) -> list[Batch]:
        rows = self.reader.step_rows(epoch, step)
        micro = self.reader.micro_batches(rows, self.job.train.max_tokens_per_micro_batch)
        return [self._collate(histories) for histories in micro if len(histories)]

    def _collate(self, histories: Histories) -> Batch:
        encoder = self.encoder
        return train_batch(histories, self.job.model.max_history, encoder.has_clock, encoder.target_codes)

    # -- validation ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss and ranking metrics over all targets of ``valid/``; empty if there are none.

        Every rank scores its own shards. All run as many forward passes as the one with most of them, because
        at stage 3 each gathers parameters from all.
        """
        self.engine.train(False)
        ks = sorted({*self.job.evaluate.k, *(int(k) for k in re.findall(r"@([0-9]+)$", self.metric))})
        rows = max(1, VALID_TOKENS // self.job.model.max_history)
        batches = iter(TargetReader(self.dataset, "valid", rank=self.rank, world_size=self.world_size, batch_size=rows))
        sums = dict.fromkeys(ranking_sums(np.zeros(0, np.int64), ks), 0.0)
        loss_sum, count, lists = 0.0, 0.0, 0.0
        while True:
            histories, targets = next(batches, (None, None))
            if not self._anyone(histories is not None):
                break
            found = self._validate_batch(histories, targets)
            loss_sum, count, lists = loss_sum + found[0], count + found[1], lists + len(found[2])
            sums = {name: sums[name] + value for name, value in ranking_sums(found[2], ks).items()}
        self.engine.train(True)
        table = torch.tensor([loss_sum, count, lists, *sums.values()], dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(table)
        loss_sum, count, lists, *totals = table.tolist()
        if not lists:
            return {}
        means = {name: total / lists for name, total in zip(sums, totals, strict=True)}
        return {"loss": loss_sum / max(1.0, count), **means}

    def _validate_batch(
        self, histories: Histories | None, targets: Targets | None
    ) -> tuple[float, float, np.ndarray[Any, np.dtype[np.int64]]]:
        """(loss_sum, count, ranks) of a batch, or of none."""
        histories = self.empty if histories is None else histories
        item_B = torch.from_numpy((np.zeros(0) if targets is None else targets.item).astype(np.int64))
        batch = history_batch(histories, self.job.model.max_history, self.encoder.has_clock)
        counted_B = (batch.length_B > 0) & (item_B >= NUM_RESERVED)
        row_N, last_N = counted_B.nonzero()[:, 0], (batch.length_B - 1)[counted_B]
        batch.target_BL[row_N, last_N] = item_B[counted_B]
        if targets is not None:
            batch.target_value_BL[row_N, last_N] = torch.from_numpy(targets.value.astype(np.float32))[counted_B]
        excluded = excluded_items(histories, self.job.evaluate.exclude_seen, self.encoder.target_codes)
        device = self.engine.device
        loss_sum, count, rank_B = self.engine(batch.to(device), RankTargets(item_B.to(device), excluded))
        return float(loss_sum), float(count), rank_B.cpu().numpy()

    def _anyone(self, mine: bool) -> bool:
        flag = torch.tensor([float(mine)], device=self.engine.device)
        dist.all_reduce(flag)
        return bool(flag.item() > 0)

    def _judge(self, metrics: dict[str, float], due: bool) -> None:
        """Notes whether this epoch's weights are the best so far; without a validation split the latest are."""
        progress = self.progress
        if metrics:
            value, best = metrics[self.metric], progress.best_value
            if not np.isfinite(value):
                raise TrainingError(f"{self.metric} is {value} after epoch {progress.epoch}", "a finite number")
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

    def _save(self) -> str:
        self._log_window()
        if self.journal:
            self.journal.commit()
        name = self.saver.save(self.progress)
        self._write_best()
        self.saver.rotate(self.progress)
        return f"{self.folder}/{FOLDER}/{name}"

    def _write_best(self) -> None:
        progress = self.progress
        if self.rank == 0 and progress.best_step:
            best = {
                "checkpoint": f"{FOLDER}/step-{progress.best_step}",
                "step": progress.best_step,
                "epoch": progress.best_epoch,
                "metric": self.metric,
                "value": progress.best_value,
            }
            self.folder.write_json(BEST, best)

    def _log_window(self) -> None:
        if self.journal and self.window.steps:
            place = {"step": self.progress.step, "epoch": self.progress.epoch, "total_steps": self.total_steps}
            self.journal.write(kind="train", **place, **self.window.line())
        self.window.restart()


class Window:
    """What happened since the last line of the journal."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets everything and starts the clock."""
        self.started = time.perf_counter()
        self.steps = self.count = self.tokens = 0
        self.loss_sum = self.waited_s = self.rate = 0.0

    def add(self, result: StepResult, rate: float, waited_s: float) -> None:
        """Adds one step."""
        self.steps += 1
        self.count += result.count
        self.tokens += result.num_tokens
        self.loss_sum += result.loss_sum
        self.waited_s += waited_s
        self.rate = rate

    def line(self) -> dict[str, float]:
        """Mean loss a target, learning rate, padded positions a second, share of the time spent on reading."""
        took_s = max(1e-9, time.perf_counter() - self.started)
        return {
            "loss": self.loss_sum / max(1, self.count),
            "learning_rate": self.rate,
            "tokens_per_s": round(self.tokens / took_s, 1),
            "data_wait_share": round(self.waited_s / took_s, 4),
        }


def _key(seed: int, step: int, rank: int) -> int:
    """A seed of torch's generator for one step of one rank."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
