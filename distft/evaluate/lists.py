"""What recommended lists are like, beyond whether they hit: how much of the catalogue they show, and how popular it is.

Enters: the lists of all targets, and how often each item was trained on. Leaves: one number a metric and k. Surprising
choice: an item that was never trained on counts as if it had been once, since its self-information would be endless.

Shape legend: B lists, K places, N item rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distft.schema import NUM_RESERVED


def list_metrics(top_BK: NDArray[np.int32], counts_N: NDArray[np.int64], ks: Sequence[int]) -> dict[str, float]:
    """coverage@k, novelty@k, arp@k and gini@k of lists of item rows, best first (PAD where a list ran out).

    - coverage: share of the catalogue that is shown to somebody.
    - novelty: mean self-information of what is shown, -log2 of the item's share of all target events in training, in
      bits (Zhou et al., 2010).
    - arp: average recommendation popularity, the target events in training of what is shown: the mean over a list, then
      over lists (Yin et al., 2012).
    - gini: inequality of how often items are shown: 0 if all are equally often, near 1 if one alone is (Fleder and
      Hosanagar, 2009).
    """
    count_N = counts_N.astype(np.float64)
    bits_N = -np.log2(np.maximum(count_N, 1) / max(1.0, count_N.sum()))
    metrics: dict[str, float] = {}
    for k in ks:
        top_Bk = top_BK[:, :k]
        shown_Bk = top_Bk >= NUM_RESERVED
        times_N = np.bincount(top_Bk[shown_Bk], minlength=len(counts_N))[NUM_RESERVED:]
        metrics[f"coverage@{k}"] = float((times_N > 0).mean()) if len(times_N) else 0.0
        metrics[f"novelty@{k}"] = _mean_of_means(bits_N[top_Bk], shown_Bk)
        metrics[f"arp@{k}"] = _mean_of_means(count_N[top_Bk], shown_Bk)
        metrics[f"gini@{k}"] = gini(times_N)
    return metrics


def gini(amount_N: NDArray[np.int64]) -> float:
    """Gini coefficient of non-negative amounts; 0 where there are none."""
    total = float(amount_N.sum())
    if not total:
        return 0.0
    place_N = 2 * np.arange(1, len(amount_N) + 1) - len(amount_N) - 1
    return float(place_N @ np.sort(amount_N)) / (len(amount_N) * total)


def _mean_of_means(value_BK: NDArray[np.float64], shown_BK: NDArray[np.bool_]) -> float:
    """Mean over the lists that show anything of the mean over what they show."""
    shown_B = shown_BK.sum(1)
    means_B = (value_BK * shown_BK).sum(1)[shown_B > 0] / shown_B[shown_B > 0]
    return float(means_B.mean()) if len(means_B) else 0.0
