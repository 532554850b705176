"""The contents of ``report/metrics.json`` from the one table of ranks: metrics, intervals, tests, slices.

Enters: the table that the workers made. Leaves: JSON. Surprising choice: all is computed from ranks and lists that are
already there, so that nothing of it can disagree with anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distft.data.encode import Encoder
from distft.evaluate.lists import list_metrics
from distft.evaluate.metrics import ranking_metrics
from distft.evaluate.resampling import compare, intervals
from distft.evaluate.slices import slices
from distft.job import Job
from distft.schema import NUM_RESERVED

RANK, TOP = "rank_", "top_"
"""Prefixes of the table's columns: the ranks of the targets, and the lists, by the model and each baseline."""

AGAINST_RANK, AGAINST_KNOWN = "against_rank", "against_known"
"""Columns of the table where there is a rival: its rank of each target, and whether it knows the item."""

SLICE_METRICS = ("hr", "ndcg", "mrr")
"""What is told of a slice, each at the main k."""


def main_k(job: Job) -> int:
    """The k of tests and slices: 10 where the job asks for it, else its largest."""
    return 10 if 10 in job.evaluate.k else max(job.evaluate.k)


def summarise(job: Job, table: pa.Table, split: str, encoder: Encoder) -> dict[str, Any]:
    """The metrics of the model and of the baselines with 95% intervals, whether they differ, and slices.

    ``table``: one row a target, with ``user_row, target_item, target_event, history_length, seen_before``, and for
    "model" and every baseline ``rank_<name>`` and ``top_<name>``.
    """
    ks = sorted(set(job.evaluate.k))
    ranks = columns(table, RANK)
    users = table.column("user_row").to_numpy()
    targets = table.column("target_item").to_numpy()
    means = {name: ranking_metrics(rank_T, ks) for name, rank_T in ranks.items()}
    for name, top in columns(table, TOP).items():
        means[name] |= list_metrics(np.array(top.tolist(), np.int32).reshape(len(top), max(ks)), encoder.counts, ks)
    bounds = {name: intervals(rank_T, users, ks, job.seed) for name, rank_T in ranks.items()}
    return {
        "split": split,
        "num_targets": table.num_rows,
        "num_users": len(np.unique(users)),
        "unknown_target_share": float((targets < NUM_RESERVED).sum() / max(1, len(targets))),
        "exclude_seen": job.evaluate.exclude_seen,
        "model": means.pop("model"),
        "baselines": means,
        "intervals": bounds.pop("model"),
        "baseline_intervals": bounds,
        "significance": _significance(job, ranks, users),
        "slices": _slices(job, table, encoder, ranks, users),
    }


def against(job: Job, table: pa.Table) -> dict[str, Any]:
    """The rival's metrics, and by how much the model is better, on all targets; one that it does not know is a miss."""
    ks = sorted(set(job.evaluate.k))
    rank_T, users = table.column(AGAINST_RANK).to_numpy(), table.column("user_row").to_numpy()
    return {
        "num_common_targets": int(table.column(AGAINST_KNOWN).to_numpy(zero_copy_only=False).sum()),
        "metrics": ranking_metrics(rank_T, ks),
        "intervals": intervals(rank_T, users, ks, job.seed),
        "differences": compare(table.column(RANK + "model").to_numpy(), rank_T, users, ks, job.seed),
    }


def columns(table: pa.Table, prefix: str) -> dict[str, NDArray[Any]]:
    """The columns of the model and the baselines whose names begin alike, by the rest of their names."""
    names = [name for name in table.column_names if name.startswith(prefix)]
    return {name.removeprefix(prefix): table.column(name).to_numpy(zero_copy_only=False) for name in names}


def _significance(job: Job, ranks: Mapping[str, NDArray[np.int64]], users: NDArray[np.int32]) -> dict[str, Any]:
    """How much better the model is than each baseline by ndcg at the main k, and whether that may be chance."""
    k = main_k(job)
    others = {name: rank_T for name, rank_T in ranks.items() if name != "model"}
    found = {name: compare(ranks["model"], rank_T, users, [k], job.seed) for name, rank_T in others.items()}
    return {"metric": f"ndcg@{k}", "baselines": {name: one[f"ndcg@{k}"] for name, one in found.items()}}


def _slices(
    job: Job, table: pa.Table, encoder: Encoder, ranks: Mapping[str, NDArray[np.int64]], users: NDArray[np.int32]
) -> dict[str, dict[str, Any]]:
    groups = slices(table, encoder.counts, encoder.event_names)
    return {
        way: {name: _slice(job, mask_T, ranks, users) for name, mask_T in some.items()} for way, some in groups.items()
    }


def _slice(
    job: Job, mask_T: NDArray[np.bool_], ranks: Mapping[str, NDArray[np.int64]], users: NDArray[np.int32]
) -> dict[str, Any]:
    k = main_k(job)
    names = [f"{family}@{k}" for family in SLICE_METRICS]
    means: dict[str, dict[str, float]] = {}
    bounds: dict[str, dict[str, list[float]]] = {}
    for name, rank_T in ranks.items():
        mean, bound = ranking_metrics(rank_T[mask_T], [k]), intervals(rank_T[mask_T], users[mask_T], [k], job.seed)
        means[name] = {metric: mean[metric] for metric in names}
        bounds[name] = {metric: bound[metric] for metric in names}
    return {
        "count": int(mask_T.sum()),
        "model": means.pop("model"),
        "intervals": bounds.pop("model"),
        "baselines": means,
        "baseline_intervals": bounds,
    }
