"""Loss and metrics over the validation split, every rank scoring its own shards.

Enters: an engine. Leaves: the means over all targets of ``valid/``. Surprising choice: all ranks run as many forward
passes as the one with most batches, if need be on none, because at stage 3 each gathers parameters from all.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from distft.data.collate import Side, history_batch, set_targets
from distft.data.encode import Encoder
from distft.data.hashing import mix
from distft.data.ragged import concat
from distft.data.shards import TargetReader, Targets
from distft.errors import UsageError
from distft.evaluate.metrics import ranking_sums
from distft.evaluate.pointwise import label_metrics, value_metrics
from distft.job import Job
from distft.ranking import excluded_items
from distft.schema import NUM_RESERVED, PAD, Histories
from distft.storage import Storage
from distft.train.engine import Engine
from distft.train.position import here
from distft.train.step import RankTargets

MAX_TOKENS = 16_384
"""Padded positions of one forward pass."""


def watched_metric(job: Job) -> str:
    """The validation metric that decides which checkpoint is best, and when to stop. Raises UsageError for another."""
    if job.train.early_stopping is not None:
        metric = job.train.early_stopping.metric
        if not job.validates(metric):  # found when the job was read, but for a section that its stages do not use
            raise UsageError(
                f"train.early_stopping.metric is {metric} with the loss {job.loss.kind}",
                f"one that validation computes: {job.validation_metrics} or loss",
                "Set it.",
            )
        return metric
    return "loss" if job.loss.judges else f"ndcg@{10 if 10 in job.evaluate.k else max(job.evaluate.k)}"


class Validation:
    """The validation split of a dataset, and what a job wants to know of it."""

    def __init__(self, job: Job, dataset: Storage, encoder: Encoder, side: Side, metric: str) -> None:
        self._job, self._dataset, self._encoder, self._side = job, dataset, encoder, side
        self._judges = job.loss.judges
        self._ks = sorted({*job.evaluate.k, *(int(k) for k in re.findall(r"@([0-9]+)$", metric))})
        self._rows = max(1, MAX_TOKENS // job.model.max_history)
        self._empty = concat([])

    @torch.no_grad()
    def score(self, engine: Engine) -> dict[str, float]:
        """Mean loss and metrics over all targets; empty if there are none. Every rank calls it.

        The metrics are those of a ranking, or with a pointwise loss those of labels or values.
        """
        engine.train(False)
        batches = iter(
            TargetReader(self._dataset, "valid", rank=engine.rank, world_size=engine.world_size, batch_size=self._rows)
        )
        sums = {"loss": 0.0, "count": 0.0, "lists": 0.0}
        if self._judges is None:
            sums |= dict.fromkeys(ranking_sums(np.zeros(0, np.int64), self._ks), 0.0)
        scores, values = [np.zeros(0)], [np.zeros(0)]
        while True:
            here.at("validation")
            histories, targets = next(batches, (None, None))
            if not _anyone(histories is not None, engine.device):
                break
            loss_sum, count, found = self._score_batch(engine, histories, targets)
            more = {"loss": loss_sum, "count": count, "lists": len(found)}
            if self._judges is None:
                more |= ranking_sums(found, self._ks)
            else:
                scores.append(found)
                values += [] if targets is None else [targets.value.astype(np.float64)]
            sums = {name: sums[name] + value for name, value in more.items()}
        engine.train(True)
        table = torch.tensor(list(sums.values()), dtype=torch.float64, device=engine.device)
        dist.all_reduce(table)
        sums = dict(zip(sums, table.tolist(), strict=True))
        loss_sum, count, lists = (sums.pop(name) for name in ("loss", "count", "lists"))
        if not lists:
            return {}
        loss = {"loss": loss_sum / max(1.0, count)}
        if self._judges is None:
            return loss | {name: total / lists for name, total in sums.items()}
        all_scores, all_values = (_gathered(np.concatenate(parts), engine) for parts in (scores, values))
        if self._judges == "labels":
            return loss | label_metrics(all_scores, all_values)
        return loss | value_metrics(self._job.loss.values(all_scores), all_values)

    def _score_batch(
        self, engine: Engine, histories: Histories | None, targets: Targets | None
    ) -> tuple[float, float, NDArray[Any]]:
        """(loss_sum, count, ranks or scores) of a batch, or of none."""
        histories = self._empty if histories is None else histories
        item_B = torch.from_numpy((np.zeros(0) if targets is None else targets.item).astype(np.int64))
        batch = history_batch(histories, self._job.model.max_history, self._encoder.has_clock, self._side)
        # Of the user alone: what a loss draws is the same at every validation, so that these compare.
        batch.key_B = torch.from_numpy(mix(histories.user_row.astype(np.uint64)).view(np.int64))
        if targets is not None:
            counted_B = (histories.lengths > 0) & (targets.item >= NUM_RESERVED)
            if self._judges is not None:  # of every target something is to be said
                counted_B = targets.item != PAD
            set_targets(batch, np.where(counted_B, targets.item, PAD), targets.value)
        excluded = excluded_items(histories, self._job.evaluate.exclude_seen, self._encoder.target_codes)
        device = engine.device
        asked = RankTargets(item_B.to(device), excluded, scored=self._judges is not None)
        batch = batch.to(device)
        engine.look_up([batch], asked)
        loss_sum, count, found_B = engine(batch, asked)
        return float(loss_sum), float(count), found_B.cpu().numpy()


def _anyone(mine: bool, device: torch.device) -> bool:
    flag = torch.tensor([float(mine)], device=device)
    dist.all_reduce(flag)
    return bool(flag.item() > 0)


def _gathered(mine: NDArray[Any], engine: Engine) -> NDArray[np.float64]:
    """The numbers of all ranks, in the order of the ranks."""
    sizes = torch.zeros(engine.world_size, dtype=torch.int64, device=engine.device)
    sizes[engine.rank] = len(mine)
    dist.all_reduce(sizes)
    padded = torch.zeros(int(sizes.max()), dtype=torch.float64, device=engine.device)
    padded[: len(mine)] = torch.from_numpy(mine.astype(np.float64))
    parts = [torch.empty_like(padded) for _ in range(engine.world_size)]
    dist.all_gather(parts, padded)
    return np.concatenate([part[:size].cpu().numpy() for part, size in zip(parts, sizes.tolist(), strict=True)])
