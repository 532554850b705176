"""How well scores tell the labels, or the values, of their targets: one number a metric, and how calibrated they are.

Enters: the raw scores of targets and what these truly were. Leaves: metrics, their intervals, the calibration curve.
A score of 0 stands for a probability of one half. AUC is exact: the share of pairs of a positive and a negative that
are in the right order, ties counting half (Mann and Whitney, 1947). Surprising choice: all of it is computed from one
array of scores, not added up by workers, because the AUC of a whole is no sum of its parts'.

Shape legend: N targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from distft.evaluate.metrics import bootstrap_interval
from distft.schema import LABEL_METRICS, VALUE_METRICS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

NUM_BINS = 10
NUM_SAMPLES = 200
"""Bootstrap samples of the metrics that are no means: each needs a pass over all targets."""


def probabilities(score_N: Floats) -> Floats:
    """1 / (1 + exp(-score)), without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -score_N)))


def label_metrics(score_N: Floats, label_N: Floats) -> dict[str, float]:
    """auc, accuracy, precision, recall, f1 and logloss of labels 0 and 1; a share of nothing is 0.

    A target is called positive where its score is above 0, that is its probability above one half.
    """
    called_N, true_N = score_N > 0, label_N > 0.5
    hits = float((called_N & true_N).sum())
    precision, recall = _share(hits, called_N.sum()), _share(hits, true_N.sum())
    return {
        "auc": auc(score_N, label_N),
        "accuracy": _share(float((called_N == true_N).sum()), len(label_N)),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "logloss": float(log_losses(score_N, label_N).mean()) if len(label_N) else 0.0,
    }


def value_metrics(predicted_N: Floats, value_N: Floats) -> dict[str, float]:
    """Rmse and mae of predicted values."""
    error_N = predicted_N - value_N
    if not len(error_N):
        return dict.fromkeys(VALUE_METRICS, 0.0)
    return {"rmse": float(np.sqrt((error_N**2).mean())), "mae": float(np.abs(error_N).mean())}


def auc(score_N: Floats, label_N: Floats) -> float:
    """Area under the ROC curve by mid-ranks; one half where all labels are the same."""
    positive_N = label_N > 0.5
    positives = int(positive_N.sum())
    negatives = len(label_N) - positives
    if not positives or not negatives:
        return 0.5
    _, place_N, count = np.unique(score_N, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    rank_N = (last - (count - 1) / 2)[place_N]
    return float((rank_N[positive_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def log_losses(score_N: Floats, label_N: Floats) -> Floats:
    """-log of the probability given to each true label."""
    return np.asarray(np.logaddexp(0.0, score_N) - label_N * score_N)


def calibration(score_N: Floats, label_N: Floats) -> list[dict[str, float]]:
    """The curve of reliability: for each of ten equal ranges of probability that holds any target, the mean of what
    was predicted, the share of positives, and the count (Niculescu-Mizil and Caruana, 2005).
    """
    p_N = probabilities(score_N)
    bin_N = np.minimum((p_N * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    count, predicted, observed = (np.bincount(bin_N, weights, NUM_BINS) for weights in (None, p_N, label_N))
    return [
        {"predicted": float(predicted[b] / count[b]), "observed": float(observed[b] / count[b]), "count": int(count[b])}
        for b in np.flatnonzero(count).tolist()
    ]


def intervals(score_N: Floats, label_N: Floats, seed: int) -> dict[str, list[float]]:
    """95% percentile bootstrap intervals over targets (Efron, 1979) of ``label_metrics``, deterministic in the seed."""
    if not len(label_N):
        return {}
    right_N = ((score_N > 0) == (label_N > 0.5)).astype(np.float64)
    found = {"accuracy": list(bootstrap_interval(right_N, seed))}
    rng = np.random.default_rng([seed, len(label_N)])
    drawn = [rng.integers(0, len(label_N), len(label_N)) for _ in range(NUM_SAMPLES)]
    samples = [label_metrics(score_N[some], label_N[some]) for some in drawn]
    for name in LABEL_METRICS:
        if name not in found:
            low, high = np.quantile([sample[name] for sample in samples], [0.025, 0.975])
            found[name] = [float(low), float(high)]
    return found


def summarise_labels(scores: Mapping[str, Floats], label_N: Floats, seed: int) -> dict[str, Any]:
    """The ``pointwise`` part of metrics.json; ``scores``: of "model" and of the baselines."""
    metrics = {name: label_metrics(score_N, label_N) for name, score_N in scores.items()}
    return {
        "num_targets": len(label_N),
        "positive_share": float(label_N.mean()) if len(label_N) else 0.0,
        "model": metrics.pop("model"),
        "baselines": metrics,
        "intervals": intervals(scores["model"], label_N, seed),
        "calibration": calibration(scores["model"], label_N),
    }


def summarise_values(predicted: Mapping[str, Floats], value_N: Floats, seed: int) -> dict[str, Any]:
    """Likewise, of values that were predicted."""
    metrics = {name: value_metrics(predicted_N, value_N) for name, predicted_N in predicted.items()}
    error_N = predicted["model"] - value_N
    squares = bootstrap_interval(error_N**2, seed)
    return {
        "num_targets": len(value_N),
        "model": metrics.pop("model"),
        "baselines": metrics,
        "intervals": {
            "rmse": [float(np.sqrt(bound)) for bound in squares],
            "mae": list(bootstrap_interval(np.abs(error_N), seed)),
        },
    }


def _share(part: float, whole: float | np.integer[Any]) -> float:
    return float(part / whole) if whole else 0.0
