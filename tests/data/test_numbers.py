from __future__ import annotations

import statistics

import numpy as np
import pytest

from distft.data.features import FeatureSpec
from distft.data.numbers import learn, outside, quantiles, scaled, substitute, unscaled

RAW = [3.0, 1.0, 100.0, 2.0, 7.0, -50.0, 2.0, 4.0, 5.0, 6.0, float("nan"), 9999.0]
TRAINS = [True] * 11 + [False]


def naive(scale: str, clip: tuple[float, float] | None, missing: str) -> tuple[list[float], float]:
    """(scaled numbers, what a missing one is), a number at a time."""
    train = sorted(raw for raw, one in zip(RAW, TRAINS, strict=True) if one and raw == raw)
    low, high = min(train), max(train)
    if clip:
        low, high = (next(x for x in train if sum(y <= x for y in train) >= share * len(train)) for share in clip)
    ended = clip is not None or scale != "standard"
    mean = statistics.fmean(min(max(x, low), high) for x in train)
    deviation = statistics.pstdev(min(max(x, low), high) for x in train)

    def one(raw: float) -> float:
        held = min(max(raw, low), high) if ended and raw == raw else raw
        unit = (held - low) / (high - low)
        return {"standard": (held - mean) / deviation, "unit": unit, "symmetric": 2 * unit - 1}[scale]

    return [one(raw) for raw in RAW], one(0.0 if missing == "zero" else mean)


@pytest.mark.parametrize("scale", ["standard", "unit", "symmetric"])
@pytest.mark.parametrize("clip", [None, (0.15, 0.9), (0.0, 1.0), (0.0, 0.85)])
@pytest.mark.parametrize("missing", ["mean", "zero"])
def test_numbers_are_scaled_as_one_by_one(scale: str, clip: tuple[float, float] | None, missing: str) -> None:
    raw = np.array(RAW)
    spec = learn(FeatureSpec("price", "number", scale=scale, clip=clip, missing=missing), raw, np.array(TRAINS))
    wanted, instead = naive(scale, clip, missing)
    np.testing.assert_allclose(scaled(spec, raw), wanted, rtol=1e-6, atol=1e-6)
    assert substitute(spec) == pytest.approx(instead, rel=1e-6, abs=1e-6)
    if scale != "standard":
        assert np.nanmin(scaled(spec, raw)) == (0 if scale == "unit" else -1)
        assert np.nanmax(scaled(spec, raw)) == 1
    beyond = {None: 0 if scale == "standard" else 1, (0.0, 1.0): 1, (0.15, 0.9): 3, (0.0, 0.85): 2}
    assert outside(spec, raw).sum() == beyond[clip]


@pytest.mark.parametrize("scale", ["standard", "unit", "symmetric"])
@pytest.mark.parametrize("values", [[0.1, 0.1, 0.1], [7.0], [], [float("nan")]])
def test_a_feature_that_is_constant_in_training_is_zero(scale: str, values: list[float]) -> None:
    raw = np.array([*values, 5.0, float("nan")])
    counted = np.arange(len(raw)) < len(values)
    spec = learn(FeatureSpec("price", "number", scale=scale, clip=(0.1, 0.9), missing="mean"), raw, counted)
    assert scaled(spec, raw)[-2] == 0
    assert np.isnan(scaled(spec, raw)[-1])
    assert substitute(spec) == 0


def test_quantiles_are_values_that_occur() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 19, 100):
        values = np.unique(rng.integers(0, 50, size).astype(float))
        counts = rng.integers(1, 4, len(values))
        everything = np.repeat(values, counts)
        for shares in ((0.0, 1.0), (0.07, 0.93), (0.5, 0.51)):
            wanted = np.quantile(everything, shares, method="inverted_cdf")
            assert quantiles(values[::-1], counts[::-1], shares) == pytest.approx(wanted.tolist())


def test_enormous_numbers_do_not_overflow() -> None:
    raw = np.array([3e38, -3e38, 0.0])
    spec = learn(FeatureSpec("price", "number"), raw, np.ones(3, np.bool_))
    assert np.isfinite(scaled(spec, raw)).all()


@pytest.mark.parametrize("scale", ["standard", "unit", "symmetric"])
@pytest.mark.parametrize("clip", [None, (0.2, 0.8)])
def test_numbers_are_told_again_in_the_shop_s_own_unit(scale: str, clip: tuple[float, float] | None) -> None:
    prices = [0.01, 2.95, 3.0, 19.99, 146.0, 1250.5]
    raw = np.array([*prices, float("nan")])
    spec = learn(FeatureSpec("price", "number", scale=scale, clip=clip), raw, np.ones(7, np.bool_))
    told = [unscaled(spec, float(value)) for value in scaled(spec, raw)]
    low, high = (prices[0], prices[4]) if clip is None else (2.95, 146.0)
    expected = [min(max(price, low), high) for price in prices] if clip else prices
    assert told[-1] is None
    assert told[:-1] == pytest.approx(expected, rel=1e-4), told
    assert [round(value, 2) for value in told[1:-1]] == [round(value, 2) for value in expected[1:]]


def test_a_constant_is_told_as_it_was() -> None:
    spec = learn(FeatureSpec("price", "number"), np.array([7.5, 7.5]), np.ones(2, np.bool_))
    assert unscaled(spec, 0.0) == 7.5
