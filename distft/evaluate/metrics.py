"""Ranking metrics from the ranks of the targets, one target a list; formulas as in every textbook, written once.

With one relevant item per list recall@k equals hr@k and average precision equals the reciprocal rank. Rank 1 is
the best; a miss has a rank beyond every k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def ranking_sums(ranks: NDArray[np.int64], ks: Sequence[int]) -> dict[str, float]:
    """Sum over lists of hr@k, ndcg@k, mrr@k, recall@k and map@k: divide by the number of lists for the mean.

    Sums, so that workers can add theirs up. ndcg (Järvelin and Kekäläinen, 2002): with one relevant item
    1 / log2(1 + rank) inside the list.
    """
    gains = per_list(ranks, ks)
    return {name: float(values.sum()) for name, values in gains.items()}


def per_list(ranks: NDArray[np.int64], ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Each metric's value for every list [num_lists]."""
    values: dict[str, NDArray[np.float64]] = {}
    for k in ks:
        hit = ranks <= k
        values[f"hr@{k}"] = hit.astype(np.float64)
        values[f"ndcg@{k}"] = np.where(hit, 1 / np.log2(1 + np.maximum(ranks, 1)), 0.0)
        values[f"mrr@{k}"] = np.where(hit, 1 / np.maximum(ranks, 1), 0.0)
        values[f"recall@{k}"] = values[f"hr@{k}"]
        values[f"map@{k}"] = values[f"mrr@{k}"]
    return values


def ranking_metrics(ranks: NDArray[np.int64], ks: Sequence[int]) -> dict[str, float]:
    """Mean over lists of every ranking metric; 0 for no lists."""
    return {name: total / max(1, len(ranks)) for name, total in ranking_sums(ranks, ks).items()}


def bootstrap_interval(
    values: NDArray[np.float64], seed: int, num_samples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over lists (Efron, 1979), deterministic in the seed.

    Multinomial counts over the distinct values replace drawing every list anew: the same distribution, and the
    cost no longer grows with the number of lists times the number of samples.
    """
    if not len(values):
        return (0.0, 0.0)
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng([seed, len(values)])
    samples = rng.multinomial(len(values), counts / len(values), size=num_samples)
    means = samples @ distinct / len(values)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return (float(low), float(high))
