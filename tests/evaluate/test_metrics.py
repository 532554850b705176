"""Metrics from ranks against their definitions, list by list."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distft.evaluate.metrics import bootstrap_interval, ranking_metrics, ranking_sums

RANKS = np.array([1, 2, 3, 10, 11, 500])


def test_each_metric_follows_its_definition():
    metrics = ranking_metrics(RANKS, [1, 10])
    assert metrics["hr@1"] == pytest.approx(1 / 6)
    assert metrics["hr@10"] == metrics["recall@10"] == pytest.approx(4 / 6)
    assert metrics["mrr@10"] == metrics["map@10"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 10) / 6)
    gain = 1 + 1 / math.log2(3) + 1 / math.log2(4) + 1 / math.log2(11)
    assert metrics["ndcg@10"] == pytest.approx(gain / 6)


def test_sums_of_parts_are_the_sum_of_the_whole():
    parts = [ranking_sums(part, [5]) for part in (RANKS[:2], RANKS[2:])]
    whole = ranking_sums(RANKS, [5])
    for name, value in whole.items():
        assert sum(part[name] for part in parts) == pytest.approx(value)


def test_no_lists_give_zero():
    assert ranking_metrics(np.zeros(0, np.int64), [10])["ndcg@10"] == 0
    assert bootstrap_interval(np.zeros(0), 1) == (0.0, 0.0)


def test_the_interval_has_its_coverage():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        low, high = bootstrap_interval((rng.random(400) < 0.3).astype(float), trial)
        inside += low <= 0.3 <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_the_interval_is_deterministic():
    values = np.random.default_rng(0).random(100)
    assert bootstrap_interval(values, 7) == bootstrap_interval(values, 7)
