"""Intervals and paired tests: their coverage, their size and their power, and what makes them honest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distft.evaluate import resampling
from distft.evaluate.metrics import ranking_metrics
from distft.evaluate.resampling import compare, intervals


@pytest.fixture(autouse=True)
def _fewer_samples(monkeypatch):
    monkeypatch.setattr(resampling, "NUM_FLIPS", 400)
    monkeypatch.setattr(resampling, "NUM_SAMPLES", 400)


def ranks(rng: np.random.Generator, number: int, share: float) -> np.ndarray:
    return np.where(rng.random(number) < share, 1, 99)


def test_an_interval_has_its_coverage():
    inside = 0
    for trial in range(150):
        low, high = intervals(ranks(np.random.default_rng(trial), 300, 0.3), np.arange(300), [10], trial)["hr@10"]
        inside += low <= 0.3 <= high
    assert 0.88 <= inside / 150 <= 0.99


def test_alike_targets_of_one_user_make_an_interval_wide():
    rng = np.random.default_rng(1)
    rank = np.repeat(ranks(rng, 100, 0.3), 16)
    apart = np.diff(intervals(rank, np.arange(1600), [10], 1)["hr@10"])
    together = np.diff(intervals(rank, np.repeat(np.arange(100), 16), [10], 1)["hr@10"])
    assert 3 < together / apart < 5, "sixteen times the targets, none of them new"


def test_both_ways_of_drawing_users_agree(monkeypatch):
    rank = np.random.default_rng(2).integers(1, 40, 500)
    fast = intervals(rank, np.arange(500), [5, 10], 1)
    monkeypatch.setattr(resampling, "MAX_CELLS", 5_000)
    twice = intervals(np.concatenate([rank, rank]), np.tile(np.arange(500), 2), [5, 10], 1)
    for name, bounds in fast.items():
        assert twice[name] == pytest.approx(bounds, abs=0.012), name


def test_a_difference_is_that_of_the_means_and_lies_in_its_interval():
    rng = np.random.default_rng(3)
    one, other = rng.integers(1, 30, 400), rng.integers(1, 60, 400)
    found = compare(one, other, np.arange(400), [10], 1)
    for name, value in ranking_metrics(one, [10]).items():
        assert found[name]["difference"] == pytest.approx(value - ranking_metrics(other, [10])[name])
        low, high = found[name]["interval"]
        assert low < found[name]["difference"] < high
    assert found["ndcg@10"]["p_value"] == 1 / 401, "the smallest that 400 coins can tell"
    assert found == compare(one, other, np.arange(400), [10], 1), "deterministic in the seed"


def test_p_values_are_those_of_all_coins_that_could_have_fallen():
    one, other = np.array([1, 1, 1, 1, 9, 1, 1]), np.array([9, 9, 9, 9, 1, 9, 1])
    gain = (one == 1).astype(float) - (other == 1)
    sums = np.array([np.dot(coins, gain) for coins in itertools.product((-1, 1), repeat=7)])
    exact = float((np.abs(sums) >= abs(gain.sum())).mean())
    assert compare(one, other, np.arange(7), [5], 1)["hr@5"]["p_value"] == pytest.approx(exact, abs=0.06)


def test_models_that_do_not_differ_are_seldom_told_apart():
    p_values = []
    for trial in range(100):
        rng = np.random.default_rng(trial)
        found = compare(ranks(rng, 200, 0.3), ranks(rng, 200, 0.3), np.arange(200), [10], trial)
        p_values.append(found["hr@10"]["p_value"])
    assert np.mean(np.array(p_values) < 0.05) < 0.12
    assert np.mean(np.array(p_values) < 0.5) > 0.3
    same = ranks(np.random.default_rng(0), 50, 0.3)
    assert compare(same, same, np.arange(50), [10], 1)["hr@10"] == {
        "difference": 0.0,
        "interval": [0.0, 0.0],
        "p_value": 1.0,
    }


def test_no_targets_give_nothing():
    none = np.zeros(0, np.int64)
    assert intervals(none, none, [10], 1)["hr@10"] == [0.0, 0.0]
    assert compare(none, none, none, [10], 1)["hr@10"]["p_value"] == 1.0
