"""Full-catalogue evaluation of a trained model on one split, spread over Ray.

Enters: a job, its dataset, the model's weights. Leaves: one row per target (the ranks that model and baselines
gave it) and from these ``report/metrics.json``. Surprising choice: ranks, not metrics, come back from the workers,
so that every metric, interval, slice and paired test is computed from one table, once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch

from distft.cluster import quiet_data
from distft.data.collate import Side
from distft.data.encode import Encoder
from distft.data.shards import TargetReader, Targets
from distft.errors import ArtefactError, DistftError, revived
from distft.evaluate.baselines import oracle_scores, popularity, recently_seen
from distft.evaluate.judging import Judge, Weights, fitted, split_judged
from distft.evaluate.metrics import bootstrap_interval, per_list
from distft.job import Job
from distft.jobfile import dump_job, parse_job
from distft.models.weights import fill, read_weights
from distft.ranking import Ranker, excluded_items
from distft.schema import Histories
from distft.storage import Storage
from distft.topk import target_ranks

BATCH_ROWS = 256
NUM_PARTS = 64
ERROR = "error"
"""The one column of what a task returns that met a mistake of the user."""

Progress = Callable[[str, int, int], None]


def evaluate(
    job: Job,
    dataset: Storage,
    weights: Storage,
    split: str = "test",
    progress: Progress | None = None,
) -> tuple[dict[str, Any], pa.Table]:
    """(the contents of metrics.json, the table of ranks) of the model in ``weights``, a checkpoint or a bundle.

    The table's columns: user_row, target_item, history_length, rank_<name> for the model and each baseline, and
    ``top``, the model's list. Raises ArtefactError if the split is empty.
    """
    num_targets = TargetReader(dataset, split).num_rows
    if not num_targets:
        raise ArtefactError(
            f"{dataset}/{split} holds no targets",
            f"at least one {split} target",
            "Change data.split or data.target_events, or bring more data.",
        )
    num_parts = min(NUM_PARTS, -(-num_targets // BATCH_ROWS))
    split_spec = (dump_job(job), dataset.uri, weights.uri, split, num_parts)
    regression = fitted(job, dataset)

    def rank_parts(batch: pa.Table) -> Iterator[pa.Table]:
        try:
            scorer = _scorer(*split_spec)
            scorer.compare_with(regression)
            tables = [table for part in batch.column("part").to_pylist() for table in scorer.rank_part(part)]
        except DistftError as error:
            tables = [pa.table({ERROR: [json.dumps(error.to_json())]})]
        yield from tables

    tables: list[pa.Table] = []
    with quiet_data():
        parts = ray.data.from_items([{"part": part} for part in range(num_parts)], override_num_blocks=num_parts)
        scored = parts.map_batches(rank_parts, batch_size=1, batch_format="pyarrow", num_cpus=1)
        for table in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            if ERROR in table.column_names:
                raise revived(json.loads(next(filter(None, table[ERROR].to_pylist()))))
            tables.append(table)
            if progress:
                progress(f"ranking {split} targets", sum(len(part) for part in tables), num_targets)
    # Parts come back in any order; the table must not depend on it.
    table = pa.concat_tables(tables).sort_by([("part", "ascending"), ("row", "ascending")])
    table = table.drop_columns(["part", "row"])
    pointwise: dict[str, Any] = {}
    if job.loss.judges:
        pointwise["pointwise"], table = split_judged(job, dataset, table)
    return summarise(job, table, split, Encoder.of_dataset(dataset).num_items) | pointwise, table


@cache
def _scorer(job_yaml: str, dataset: str, weights: str, split: str, num_parts: int) -> Scorer:
    """One scorer a worker process, kept for all the parts that Ray hands to it."""
    torch.set_num_threads(1)
    return Scorer(parse_job(job_yaml), Storage(dataset), Storage(weights), split, num_parts)


class Scorer:
    """A copy of the model, and the ranks that it and the baselines give to the targets of a split."""

    def __init__(self, job: Job, dataset: Storage, weights: Storage, split: str, num_parts: int) -> None:
        self.job, self.dataset, self.split, self.num_parts = job, dataset, split, num_parts
        self.encoder = Encoder.of_dataset(dataset)
        model = job.model.build(self.encoder.catalog())
        fill(model, read_weights(weights))
        side = Side.of(self.encoder, dataset if job.model.uses_users else None)
        self.ranker = Ranker(model, job.model.max_history, self.encoder, side)
        oracles = [oracle for source in job.data.events if (oracle := source.open().oracle())]
        self.oracle = oracles[0] if len(oracles) == len(job.data.events) == 1 else None
        self.judge: Judge | None = None

    def compare_with(self, regression: Weights | None) -> None:
        """Makes ready to score single targets, where the loss is pointwise."""
        if self.judge is None and self.job.loss.judges:
            self.judge = Judge(self.job, self.dataset, self.encoder, self.ranker, regression)

    def rank_part(self, part: int) -> Iterator[pa.Table]:
        """Ranks of every target in one of ``num_parts`` parts of the split; (part, row) orders them."""
        reader = TargetReader(self.dataset, self.split, rank=part, world_size=self.num_parts, batch_size=BATCH_ROWS)
        row = 0
        for histories, targets in reader:
            judge = self.judge
            table = judge.table(histories, targets, self.rank) if judge else self.rank(histories, targets)
            place = {"part": np.full(len(table), part), "row": np.arange(row, row + len(table))}
            row += len(table)
            for name, values in place.items():
                table = table.append_column(name, pa.array(values))
            yield table

    def rank(self, histories: Histories, targets: Targets) -> pa.Table:
        """One row per target with everything that the metrics need."""
        rule = self.job.evaluate.exclude_seen
        excluded = excluded_items(histories, rule, self.encoder.target_codes)
        ranks = {"model": self.ranker.ranks(histories, targets.item, excluded)}
        target_B = torch.from_numpy(targets.item.astype(np.int64))
        functions = {
            "popularity": popularity(self.encoder, histories),
            "recently_seen": recently_seen(self.encoder, histories),
        }
        if self.oracle is not None:
            functions["oracle"] = oracle_scores(self.oracle, self.encoder, histories)
        for name, scores in functions.items():
            ranks[name] = target_ranks(scores, self.encoder.num_items, target_B, excluded).numpy()
        top = self.ranker.top_k(histories, max(self.job.evaluate.k), excluded).rows_BK.numpy()
        return pa.table(
            {
                "user_row": histories.user_row,
                "target_item": targets.item,
                "history_length": histories.lengths,
                **{f"rank_{name}": pa.array(values) for name, values in ranks.items()},
                "top": pa.array(list(top.astype(np.int32)), pa.list_(pa.int32())),
            }
        )


def summarise(job: Job, table: pa.Table, split: str, num_items: int) -> dict[str, Any]:
    """The contents of metrics.json: the model's and the baselines' metrics, with 95% intervals of the model's."""
    ks = sorted(set(job.evaluate.k))
    names = [column.removeprefix("rank_") for column in table.column_names if column.startswith("rank_")]
    lists = {name: per_list(table.column(f"rank_{name}").to_numpy(), ks) for name in names}
    means = {name: {metric: float(v.mean()) for metric, v in values.items()} for name, values in lists.items()}
    top = np.stack(table.column("top").to_numpy(zero_copy_only=False))
    for k in ks:
        shown = np.unique(top[:, :k])
        means["model"][f"coverage@{k}"] = float((shown >= 2).sum() / max(1, num_items - 2))
    intervals = {metric: list(bootstrap_interval(values, job.seed)) for metric, values in lists["model"].items()}
    targets = table.column("target_item").to_numpy()
    return {
        "split": split,
        "num_targets": table.num_rows,
        "unknown_target_share": float((targets < 2).mean()),
        "exclude_seen": job.evaluate.exclude_seen,
        "model": means.pop("model"),
        "baselines": means,
        "intervals": intervals,
    }
