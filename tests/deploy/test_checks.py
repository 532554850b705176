from __future__ import annotations

import numpy as np
import pytest

from distft.deploy.checks import Answered, Limits, against_running, coverage, floor, known_items, latency
from distft.serve.predictor import Recommendation


def answers(*lists: str) -> list[Recommendation]:
    """An answer for each list of items, which are single letters."""
    return [Recommendation(list(items), [0.0] * len(items), 0, "model", "v") for items in lists]


def test_the_floor_is_the_higher_of_both() -> None:
    half = Answered(["a", "z"], answers("ab", "ab"), answers("ab", "ab"))  # ndcg@10 0.5
    assert floor(half, Limits(min_metric=0.5), None).passed
    assert not floor(half, Limits(min_metric=0.51), None).passed
    assert floor(half, Limits(min_of_before=0.5), 1.0).passed
    refused = floor(half, Limits(min_of_before=0.5), 1.1)
    assert not refused.passed and "0.5000" in refused.found and "0.5500" in refused.wanted
    assert floor(Answered([], [], []), Limits(min_metric=1.0), 1.0).passed, "an older bundle has no targets"


def test_a_model_is_refused_only_where_it_is_surely_worse() -> None:
    targets = ["a"] * 100
    good, bad = answers(*["ab"] * 100), answers(*["ba"] * 100)
    assert against_running(Answered(targets, good, bad), Limits()).passed
    assert not against_running(Answered(targets, bad, good), Limits()).passed
    assert against_running(Answered(targets, bad, good), Limits(min_of_running=0.6)).passed, "0.63 is enough then"
    two_worse = answers(*["ba"] * 2, *["ab"] * 98)
    assert against_running(Answered(targets, two_worse, good), Limits(min_of_running=1.0)).passed, "perhaps by chance"
    ten_worse = answers(*["ba"] * 10, *["ab"] * 90)
    assert not against_running(Answered(targets, ten_worse, good), Limits(min_of_running=1.0)).passed


def test_items_of_the_running_model_are_counted() -> None:
    running = np.array([f"i{number}" for number in range(10)], object)
    new = np.array([*running[:9], "x", "y"], object)
    assert known_items(new, running, Limits()).passed
    refused = known_items(new[:8], running, Limits())
    assert not refused.passed and refused.found == "80.0% of the running model's 10 items"


def test_a_model_that_recommends_the_same_to_everybody_is_refused() -> None:
    varied = answers("ab", "cd", "ef")
    assert coverage(Answered("aaa", varied, varied), Limits()).passed
    assert not coverage(Answered("aaa", answers("ab", "ab", "ab"), varied), Limits()).passed


@pytest.mark.parametrize("slow, passed", [(5, True), (6, False)])
def test_few_answers_may_be_late(slow: int, passed: bool) -> None:
    took_s = [0.01] * (100 - slow) + [0.2] * slow
    assert latency(took_s, 0.1).passed is passed
