"""Metrics of labels and values against their definitions, computed naively."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distft.evaluate.pointwise import (
    auc,
    calibration,
    intervals,
    label_metrics,
    probabilities,
    summarise_labels,
    value_metrics,
)


@pytest.fixture(params=[0, 1, 2])
def told(request):
    """(scores, labels) with many ties, and scores that are right more often than not."""
    rng = np.random.default_rng(request.param)
    label = (rng.random(300) < 0.55).astype(np.float64)
    score = np.round(rng.normal(size=300) + label, 1)
    return score, label


def test_auc_is_the_share_of_pairs_in_the_right_order(told):
    score, label = told
    pairs = [(p, n) for p in score[label == 1] for n in score[label == 0]]
    naive = sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)
    assert auc(score, label) == pytest.approx(naive, abs=1e-12)
    assert 0.6 < naive < 0.95


def test_auc_knows_right_wrong_and_nothing():
    label = np.array([0.0, 0.0, 1.0, 1.0])
    assert auc(np.array([1.0, 2.0, 3.0, 4.0]), label) == 1.0
    assert auc(-np.array([1.0, 2.0, 3.0, 4.0]), label) == 0.0
    assert auc(np.zeros(4), label) == 0.5
    assert auc(np.arange(4.0), np.ones(4)) == 0.5


def test_the_metrics_of_labels_are_those_of_the_textbook(told):
    score, label = told
    tp = sum(s > 0 and y == 1 for s, y in zip(score, label, strict=True))
    fp = sum(s > 0 and y == 0 for s, y in zip(score, label, strict=True))
    fn = sum(s <= 0 and y == 1 for s, y in zip(score, label, strict=True))
    tn = sum(s <= 0 and y == 0 for s, y in zip(score, label, strict=True))
    p = [1 / (1 + math.exp(-s)) for s in score]
    found = label_metrics(score, label)
    assert found["accuracy"] == pytest.approx((tp + tn) / 300)
    assert found["precision"] == pytest.approx(tp / (tp + fp))
    assert found["recall"] == pytest.approx(tp / (tp + fn))
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    loss = -np.mean([math.log(q) if y else math.log(1 - q) for q, y in zip(p, label, strict=True)])
    assert found["logloss"] == pytest.approx(loss)
    np.testing.assert_allclose(probabilities(score), p)


def test_extreme_scores_and_no_targets_are_no_errors():
    extreme = np.array([-1e4, 1e4])
    assert label_metrics(extreme, np.array([1.0, 0.0]))["logloss"] == pytest.approx(1e4)
    assert probabilities(extreme).tolist() == [0.0, 1.0]
    assert set(label_metrics(np.zeros(0), np.zeros(0)).values()) == {0.0, 0.5}
    assert value_metrics(np.zeros(0), np.zeros(0)) == {"rmse": 0.0, "mae": 0.0}
    assert summarise_labels({"model": np.zeros(0)}, np.zeros(0), 1)["calibration"] == []


def test_the_metrics_of_values_are_those_of_the_textbook():
    found = value_metrics(np.array([1.0, 2.0, 5.0]), np.array([2.0, 2.0, 3.0]))
    assert found == {"rmse": pytest.approx(math.sqrt(5 / 3)), "mae": 1.0}


def test_calibration_counts_every_target_once_in_its_range(told):
    score, label = told
    bins = calibration(score, label)
    assert sum(one["count"] for one in bins) == 300
    p = probabilities(score)
    for one in bins:
        low = math.floor(10 * one["predicted"]) / 10
        inside = (p >= low) & (p < low + 0.1)
        assert one["count"] == inside.sum()
        assert one["observed"] == pytest.approx(label[inside].mean())


def test_intervals_hold_the_metric_and_repeat(told):
    score, label = told
    found = intervals(score, label, 1)
    for name, value in label_metrics(score, label).items():
        low, high = found[name]
        assert low < value < high
        assert high - low < 0.3
    assert intervals(score, label, 1) == found != intervals(score, label, 2)


def test_a_summary_has_the_model_and_who_it_must_beat(told):
    score, label = told
    scores = {"model": score, "other": -score, "majority": np.full(len(score), 0.2)}
    found = summarise_labels(scores, label, 1)
    assert set(found["baselines"]) == {"other", "majority"}
    assert found["baselines"]["majority"]["accuracy"] == pytest.approx(found["positive_share"])
    assert found["baselines"]["majority"]["auc"] == 0.5
    assert found["model"]["auc"] == pytest.approx(1 - found["baselines"]["other"]["auc"])
