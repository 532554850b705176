"""What a search brought: the best trial against the one with the job's own values, target by target.

Enters: the checkpoints of two trials. Leaves: by how much the best one is better, with an interval and a p-value, on
the validation split, which chose it, and on the test split, which did not. Surprising choice: the test split is looked
at. Of many trials the best looks better than it is on what it was chosen by; only targets that took no part in the
choice tell what it brought. Nothing is decided by the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from distft.data.collate import Side
from distft.data.encode import Encoder
from distft.data.shards import TargetReader
from distft.errors import DistftError, revived
from distft.evaluate.resampling import compare
from distft.evaluate.summary import main_k
from distft.job import Job
from distft.jobfile import dump_job, parse_job
from distft.models.weights import fill, read_weights
from distft.ranking import Ranker, excluded_items
from distft.searchspace import trial_job
from distft.storage import Storage
from distft.tune.ledger import Trial

BATCH_ROWS = 256
MAX_PARTS = 64


def gains(job: Job, root: Storage, best: Storage, own: Storage, *trials: Trial) -> dict[str, Any]:
    """For "valid" and "test" ``{"metric", "best", "own", "difference", "interval", "p_value", "num_targets"}``.

    ``best`` and ``own``: the folders of the two trials ``trials``. Empty where they are one trial, where the trial of
    the job's own values failed, for a loss that judges single targets, and of a split without targets.
    """
    better, plain = trials
    if better.number == plain.number or plain.best_value is None or job.loss.judges:
        return {}
    found = {}
    for split in ("valid", "test"):
        if TargetReader(root / "dataset", split).num_rows:
            ranks = [_ranks(job, root / "dataset", split, *one) for one in ((best, better), (own, plain))]
            found[split] = _difference(job, *ranks)
    return found


def _difference(job: Job, best: dict[str, NDArray[Any]], own: dict[str, NDArray[Any]]) -> dict[str, Any]:
    name = f"ndcg@{main_k(job)}"
    told = compare(best["rank"], own["rank"], best["user"], [main_k(job)], job.seed)[name]
    means = {which: _ndcg(ranks["rank"], main_k(job)) for which, ranks in (("best", best), ("own", own))}
    return {"metric": name, **means, **told, "num_targets": len(best["rank"])}


def _ndcg(rank_T: NDArray[Any], k: int) -> float:
    from distft.evaluate.metrics import ranking_metrics

    return float(ranking_metrics(rank_T, [k])[f"ndcg@{k}"])


def _ranks(job: Job, dataset: Storage, split: str, folder: Storage, trial: Trial) -> dict[str, NDArray[Any]]:
    """{"user", "rank"} of every target, in the order of the split."""
    checkpoint = folder / str(folder.read_json("best.json")["checkpoint"])
    spec = dump_job(trial_job(job, trial.values))
    num_targets = TargetReader(dataset, split).num_rows
    num_parts = min(MAX_PARTS, -(-num_targets // (4 * BATCH_ROWS)))
    if num_parts == 1:  # sooner done here than a process is started
        parts = [_rank_part(spec, dataset, checkpoint, split, 0, 1)]
    else:
        task = ray.remote(num_cpus=1)(_rank_part)
        parts = ray.get([task.remote(spec, dataset, checkpoint, split, part, num_parts) for part in range(num_parts)])
    for part in parts:
        if "error" in part:
            raise revived(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in ("user", "rank")}


def _rank_part(spec: str, dataset: Storage, checkpoint: Storage, split: str, part: int, num_parts: int) -> Any:
    try:
        rows = list(_ranked(parse_job(spec), dataset, checkpoint, split, part, num_parts))
    except DistftError as error:
        return error.to_json()
    users, ranks = zip(*rows, strict=True) if rows else ((np.zeros(0, np.int32),), (np.zeros(0, np.int64),))
    return {"user": np.concatenate(users), "rank": np.concatenate(ranks)}


def _ranked(
    job: Job, dataset: Storage, checkpoint: Storage, split: str, part: int, num_parts: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    encoder = Encoder.of_dataset(dataset)
    model = job.model.build(encoder.catalog())
    fill(model, read_weights(checkpoint))
    side = Side.of(encoder, dataset if job.model.uses_users else None)
    ranker = Ranker(model, job.model.max_history, encoder, side)
    for histories, targets in TargetReader(dataset, split, rank=part, world_size=num_parts, batch_size=BATCH_ROWS):
        excluded = excluded_items(histories, job.evaluate.exclude_seen, encoder.target_codes)
        yield histories.user_row, ranker.ranks(histories, targets.item, excluded)
