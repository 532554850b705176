"""Full-catalogue evaluation of a trained model on one split, spread over Ray.

Enters: a job, its dataset, the model's weights, perhaps a bundle to compare with. Leaves: one row per target (the ranks
and lists of model and baselines) and from these ``report/metrics.json``. Surprising choice: ranks, not metrics, come
back from the workers, so that every metric, interval, slice and paired test is computed from one table, once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from numpy.typing import NDArray

from distft.cluster import quiet_data
from distft.data.collate import Side
from distft.data.encode import Encoder
from distft.data.shards import TargetReader, Targets
from distft.errors import ArtefactError, DistftError, revived
from distft.evaluate.baselines import oracle_scores, popularity, recently_seen
from distft.evaluate.cooccurrence import Neighbours, co_occurrence, neighbours_of
from distft.evaluate.examples import Example, examples
from distft.evaluate.judging import Judge, Weights, fitted, split_judged
from distft.evaluate.rival import Rival, check_common
from distft.evaluate.summary import AGAINST_KNOWN, AGAINST_RANK, RANK, TOP, against, summarise
from distft.job import Job
from distft.jobfile import dump_job, parse_job
from distft.models.weights import fill, read_weights
from distft.ranking import Ranker, excluded_items
from distft.schema import NUM_RESERVED, Histories
from distft.storage import Storage
from distft.topk import target_ranks, top_k

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
    rival: Storage | None = None,
) -> tuple[dict[str, Any], list[Example]]:
    """(the contents of metrics.json, visitors for the page) of the model in ``weights``, a checkpoint or a bundle.

    ``rival``: a bundle to compare with. Raises ArtefactError if the split is empty, or ``rival`` is no bundle or has
    nothing in common with it.
    """
    num_targets = TargetReader(dataset, split).num_rows
    if not num_targets:
        raise ArtefactError(
            f"{dataset}/{split} holds no targets",
            f"at least one {split} target",
            "Change data.split or data.target_events, or bring more data.",
        )
    num_parts = min(NUM_PARTS, -(-num_targets // BATCH_ROWS))
    encoder = Encoder.of_dataset(dataset)
    other = Rival(rival, encoder) if rival else None
    spec = (dump_job(job), dataset.uri, weights.uri, rival.uri if rival else None)
    regression = fitted(job, dataset)

    def rank_parts(batch: pa.Table, shared: ray.ObjectRef) -> Iterator[pa.Table]:
        near: Neighbours = ray.get(shared)
        try:
            scorer, parts = _scorer(*spec), batch.column("part").to_pylist()
            scorer.compare_with(near, regression)
            tables = [table for part in parts for table in scorer.rank_part(split, part, num_parts)]
        except DistftError as error:
            tables = [pa.table({ERROR: [json.dumps(error.to_json())]})]
        yield from tables

    tables: list[pa.Table] = []
    with quiet_data():
        parts = ray.data.from_items([{"part": part} for part in range(num_parts)], override_num_blocks=num_parts)
        shared = ray.put(neighbours_of(dataset, encoder.num_items))
        scored = parts.map_batches(
            rank_parts, batch_size=1, batch_format="pyarrow", num_cpus=1, fn_kwargs={"shared": shared}
        )
        for table in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            if ERROR in table.column_names:
                raise revived(json.loads(next(filter(None, table[ERROR].to_pylist()))))
            tables.append(table)
            if progress:
                progress(f"ranking {split} targets", sum(len(part) for part in tables), num_targets)
    # Parts come back in any order; the table must not depend on it.
    table = pa.concat_tables(tables).sort_by([("part", "ascending"), ("row", "ascending")])
    table = table.drop_columns(["part", "row"])
    batches = (batch for part in range(num_parts) for batch in _reader(dataset, split, part, num_parts))
    visitors = examples(batches, table, encoder)
    pointwise: dict[str, Any] = {}
    if job.loss.judges:
        pointwise["pointwise"], table = split_judged(job, dataset, table)
    metrics = summarise(job, table, split, encoder) | pointwise
    if rival and other:
        check_common(rival, table.column(AGAINST_KNOWN).to_numpy(zero_copy_only=False))
        metrics["against"] = {"name": other.name, "model_version": other.version, **against(job, table)}
    return metrics, visitors


def _reader(dataset: Storage, split: str, part: int, num_parts: int) -> TargetReader:
    return TargetReader(dataset, split, rank=part, world_size=num_parts, batch_size=BATCH_ROWS)


@cache
def _scorer(job_yaml: str, dataset: str, weights: str, rival: str | None) -> Scorer:
    """One scorer a worker process, kept for all the parts that Ray hands to it."""
    torch.set_num_threads(1)
    return Scorer(parse_job(job_yaml), Storage(dataset), Storage(weights), Storage(rival) if rival else None)


class Scorer:
    """A copy of the model, and the ranks that it and the baselines give to the targets of a split."""

    def __init__(self, job: Job, dataset: Storage, weights: Storage, rival: Storage | None = None) -> None:
        self.job, self.dataset = job, dataset
        self.encoder = Encoder.of_dataset(dataset)
        model = job.model.build(self.encoder.catalog())
        fill(model, read_weights(weights))
        side = Side.of(self.encoder, dataset if job.model.uses_users else None)
        self.ranker = Ranker(model, job.model.max_history, self.encoder, side, job.serve.item_vectors)
        oracles = [oracle for source in job.data.events if (oracle := source.open().oracle())]
        self.oracle = oracles[0] if len(oracles) == len(job.data.events) == 1 else None
        self.rival = Rival(rival, self.encoder) if rival else None
        self.near: Neighbours | None = None
        self.judge: Judge | None = None

    def compare_with(self, near: Neighbours, regression: Weights | None) -> None:
        """Makes ready what the model is compared with: ``near`` for the lists, ``regression`` for single targets."""
        self.near = near
        if self.judge is None and self.job.loss.judges:
            self.judge = Judge(self.job, self.dataset, self.encoder, self.ranker, regression)

    def rank_part(self, split: str, part: int, num_parts: int) -> Iterator[pa.Table]:
        """The table of ``rank`` for every target in one of ``num_parts`` parts of a split; (part, row) orders them."""
        row = 0
        judge = self.judge
        for histories, targets in _reader(self.dataset, split, part, num_parts):
            table = judge.table(histories, targets, self.rank) if judge else self.rank(histories, targets)
            place = {"part": np.full(len(table), part), "row": np.arange(row, row + len(table))}
            row += len(table)
            for name, values in place.items():
                table = table.append_column(name, pa.array(values))
            yield table

    def rank(self, histories: Histories, targets: Targets) -> pa.Table:
        """One row per target with everything that the metrics need.

        user_row, target_item, target_event, history_length, seen_before (the history holds the target), and for "model"
        and each baseline rank_<name> and top_<name>, the list; with a rival against_rank and against_known.
        """
        rule, num_items, k = self.job.evaluate.exclude_seen, self.encoder.num_items, max(self.job.evaluate.k)
        excluded = excluded_items(histories, rule, self.encoder.target_codes)
        target_B = torch.from_numpy(targets.item.astype(np.int64))
        functions = {
            "popularity": popularity(self.encoder, histories),
            "recently_seen": recently_seen(self.encoder, histories),
        }
        if self.near is not None:
            functions["co_occurrence"] = co_occurrence(self.near, self.encoder, histories)
        if self.oracle is not None:
            functions["oracle"] = oracle_scores(self.oracle, self.encoder, histories)
        rank_B, rows_BK = self.ranker.ranks_and_top_k(histories, targets.item, k, excluded)
        ranks, tops = {"model": rank_B}, {"model": rows_BK}
        for name, scores in functions.items():
            ranks[name] = target_ranks(scores, num_items, target_B, excluded).numpy()
            tops[name] = top_k(scores, num_items, k, excluded, len(histories))[1]
        told: dict[str, NDArray[Any]] = {}
        if self.rival is not None:
            told[AGAINST_RANK] = self.rival.ranks(histories, targets, rule)
            told[AGAINST_KNOWN] = self.rival.targets(targets.item) >= NUM_RESERVED
        return pa.table(
            {
                "user_row": histories.user_row,
                "target_item": targets.item,
                "target_event": targets.event,
                "history_length": histories.lengths,
                "seen_before": _holds(histories, targets.item),
                **{RANK + name: pa.array(values) for name, values in ranks.items()},
                **{TOP + name: _lists(rows_BK.numpy()) for name, rows_BK in tops.items()},
                **told,
            }
        )


def _holds(histories: Histories, item_B: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether each history holds the item, which is one with a row."""
    row_E = np.repeat(np.arange(len(histories)), histories.lengths)
    found_E = (histories.item_row == item_B[row_E]) & (histories.item_row >= NUM_RESERVED)
    return np.asarray(np.bincount(row_E, found_E, len(histories)) > 0)


def _lists(rows_BK: NDArray[np.int64]) -> pa.Array:
    return pa.array(list(rows_BK.astype(np.int32)), pa.list_(pa.int32()))
