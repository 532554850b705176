"""How certain a metric is, and whether two models differ: bootstrap intervals and paired randomisation tests.

Enters: the ranks that one or two models gave to the same targets, and whose targets these are. Leaves: intervals,
differences, p-values, the same for the same seed. Surprising choice: users are drawn, not targets, because the targets
of one user are alike: drawing them one by one would call certain what is not.

Shape legend: T targets, U users, M metrics, S samples, R distinct ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distft.evaluate.metrics import per_list

NUM_SAMPLES = 1000
"""Of the bootstrap."""

NUM_FLIPS = 10_000
"""Of the randomisation test, which can tell p-values from 1 / 10,001 on."""

MAX_CELLS = 1 << 22
"""Draws (samples times users) that are in memory at once."""

TAILS = (0.025, 0.975)

Floats = NDArray[np.float64]


def intervals(
    rank_T: NDArray[np.int64], user_T: NDArray[np.integer[Any]], ks: Sequence[int], seed: int
) -> dict[str, list[float]]:
    """[low, high] of every ranking metric: the 95% percentile bootstrap interval of the mean (Efron, 1979)."""
    names = list(per_list(rank_T[:0], ks))
    if not len(rank_T):
        return {name: [0.0, 0.0] for name in names}
    rng = np.random.default_rng([seed, len(rank_T)])
    if len(np.unique(user_T)) == len(rank_T):
        # Drawing how often each rank comes up is drawing users, at a cost that does not grow with their number.
        rank_R, times_R = np.unique(np.minimum(rank_T, max(ks) + 1), return_counts=True)
        times_SR = rng.multinomial(len(rank_T), times_R / len(rank_T), size=NUM_SAMPLES)
        mean_SM = times_SR @ _stacked(rank_R, ks) / len(rank_T)
    else:
        mean_SM = _bootstrap(*_by_user(_stacked(rank_T, ks), user_T), rng)
    return _bounds(names, mean_SM)


def compare(
    rank_T: NDArray[np.int64],
    other_T: NDArray[np.int64],
    user_T: NDArray[np.integer[Any]],
    ks: Sequence[int],
    seed: int,
) -> dict[str, dict[str, Any]]:
    """For every ranking metric how much better ``rank_T`` is than ``other_T`` on the same targets.

    ``difference`` of the means, its 95% bootstrap ``interval``, and the two-sided ``p_value`` of the randomisation test
    (Fisher, 1935; Smucker et al., 2007): how often a difference as large comes up where for every user a coin decides
    which of the two models is which. Counted with the observed one, so never 0 (Phipson and Smyth, 2010).
    """
    names = list(per_list(rank_T[:0], ks))
    if not len(rank_T):
        return {name: {"difference": 0.0, "interval": [0.0, 0.0], "p_value": 1.0} for name in names}
    rng = np.random.default_rng([seed, len(rank_T)])
    sum_UM, targets_U = _by_user(_stacked(rank_T, ks) - _stacked(other_T, ks), user_T)
    sum_M = sum_UM.sum(0)
    bounds = _bounds(names, _bootstrap(sum_UM, targets_U, rng))
    # Sums in another order differ in their last bits: a coin that falls as it was observed must count.
    reached_M = np.zeros(len(names), np.int64)
    for size in _sizes(NUM_FLIPS, len(sum_UM)):
        bits = np.frombuffer(rng.bytes(size * -(-len(sum_UM) // 8)), np.uint8).reshape(size, -1)
        sign_SU = np.unpackbits(bits, axis=1)[:, : len(sum_UM)] * 2.0 - 1.0
        reached_M += (np.abs(sign_SU @ sum_UM) >= np.abs(sum_M) - 1e-9 * len(rank_T)).sum(0)
    return {
        name: {
            "difference": float(sum_M[index] / len(rank_T)),
            "interval": bounds[name],
            "p_value": float((1 + reached_M[index]) / (1 + NUM_FLIPS)),
        }
        for index, name in enumerate(names)
    }


def _stacked(rank_T: NDArray[np.int64], ks: Sequence[int]) -> Floats:
    """value_TM of every metric, in the order of their names."""
    return np.stack(list(per_list(rank_T, ks).values()), axis=1)


def _by_user(value_TM: Floats, user_T: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
    """(sum_UM of each user's values, targets_U)."""
    _, place_T, targets_U = np.unique(user_T, return_inverse=True, return_counts=True)
    sums = [np.bincount(place_T, value_T, len(targets_U)) for value_T in value_TM.T]
    return np.stack(sums, axis=1), targets_U.astype(np.float64)


def _bootstrap(sum_UM: Floats, targets_U: Floats, rng: np.random.Generator) -> Floats:
    """mean_SM over the targets of as many users as there are, drawn with replacement."""
    num_users = len(targets_U)
    means = []
    for size in _sizes(NUM_SAMPLES, num_users):
        times_SU = rng.multinomial(num_users, np.full(num_users, 1 / num_users), size=size).astype(np.float64)
        means.append(times_SU @ sum_UM / (times_SU @ targets_U)[:, None])
    return np.concatenate(means)


def _sizes(total: int, width: int) -> Iterator[int]:
    """Numbers of samples that add up to ``total``, each of which fits into memory."""
    step = max(1, MAX_CELLS // max(1, width))
    for start in range(0, total, step):
        yield min(step, total - start)


def _bounds(names: Sequence[str], mean_SM: Floats) -> dict[str, list[float]]:
    low_M, high_M = np.quantile(mean_SM, TAILS, axis=0)
    return {name: [float(low), float(high)] for name, low, high in zip(names, low_M, high_M, strict=True)}
