"""Loss and ranking metrics over the validation split, every rank scoring its own shards.

Enters: an engine. Leaves: the means over all targets of ``valid/``. Surprising choice: all ranks run as many forward
passes as the one with most batches, if need be on none, because at stage 3 each gathers parameters from all.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from distft.data.collate import history_batch
from distft.data.encode import Encoder
from distft.data.hashing import mix
from distft.data.ragged import concat
from distft.data.shards import TargetReader, Targets
from distft.errors import UsageError
from distft.evaluate.metrics import ranking_sums
from distft.job import Job
from distft.ranking import excluded_items
from distft.schema import NUM_RESERVED, Histories
from distft.storage import Storage
from distft.train.engine import Engine
from distft.train.position import here
from distft.train.step import RankTargets

MAX_TOKENS = 16_384
"""Padded positions of one forward pass."""


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


class Validation:
    """The validation split of a dataset, and what a job wants to know of it."""

    def __init__(self, job: Job, dataset: Storage, encoder: Encoder, metric: str) -> None:
        self._job, self._dataset, self._encoder = job, dataset, encoder
        self._ks = sorted({*job.evaluate.k, *(int(k) for k in re.findall(r"@([0-9]+)$", metric))})
        self._rows = max(1, MAX_TOKENS // job.model.max_history)
        self._empty = concat([])

    @torch.no_grad()
    def score(self, engine: Engine) -> dict[str, float]:
        """Mean loss and ranking metrics over all targets; empty if there are none. Every rank calls it."""
        engine.train(False)
        batches = iter(
            TargetReader(self._dataset, "valid", rank=engine.rank, world_size=engine.world_size, batch_size=self._rows)
        )
        sums = dict.fromkeys(ranking_sums(np.zeros(0, np.int64), self._ks), 0.0)
        loss_sum, count, lists = 0.0, 0.0, 0.0
        while True:
            here.at("validation")
            histories, targets = next(batches, (None, None))
            if not _anyone(histories is not None, engine.device):
                break
            found = self._score_batch(engine, histories, targets)
            loss_sum, count, lists = loss_sum + found[0], count + found[1], lists + len(found[2])
            sums = {name: sums[name] + value for name, value in ranking_sums(found[2], self._ks).items()}
        engine.train(True)
        table = torch.tensor([loss_sum, count, lists, *sums.values()], dtype=torch.float64, device=engine.device)
        dist.all_reduce(table)
        loss_sum, count, lists, *totals = table.tolist()
        if not lists:
            return {}
        means = {name: total / lists for name, total in zip(sums, totals, strict=True)}
        return {"loss": loss_sum / max(1.0, count), **means}

    def _score_batch(
        self, engine: Engine, histories: Histories | None, targets: Targets | None
    ) -> tuple[float, float, np.ndarray[Any, np.dtype[np.int64]]]:
        """(loss_sum, count, ranks) of a batch, or of none."""
        histories = self._empty if histories is None else histories
        item_B = torch.from_numpy((np.zeros(0) if targets is None else targets.item).astype(np.int64))
        batch = history_batch(histories, self._job.model.max_history, self._encoder.has_clock)
        # Of the user alone: what a loss draws is the same at every validation, so that these compare.
        batch.key_B = torch.from_numpy(mix(histories.user_row.astype(np.uint64)).view(np.int64))
        counted_B = (batch.length_B > 0) & (item_B >= NUM_RESERVED)
        row_N, last_N = counted_B.nonzero()[:, 0], (batch.length_B - 1)[counted_B]
        batch.target_BL[row_N, last_N] = item_B[counted_B]
        if targets is not None:
            batch.target_value_BL[row_N, last_N] = torch.from_numpy(targets.value.astype(np.float32))[counted_B]
        excluded = excluded_items(histories, self._job.evaluate.exclude_seen, self._encoder.target_codes)
        device = engine.device
        loss_sum, count, rank_B = engine(batch.to(device), RankTargets(item_B.to(device), excluded))
        return float(loss_sum), float(count), rank_B.cpu().numpy()


def _anyone(mine: bool, device: torch.device) -> bool:
    flag = torch.tensor([float(mine)], device=device)
    dist.all_reduce(flag)
    return bool(flag.item() > 0)
