"""When trials end early: the rule, by hand."""

from __future__ import annotations

import pytest

from distft.sections.tune import Asha
from distft.tune.halving import best_of, ends_at, rungs

RULE = Asha(min_epochs=1, reduction_factor=3)


def curve(*values: float, every: int = 1) -> list[tuple[int, float]]:
    return [((place + 1) * every, value) for place, value in enumerate(values)]


@pytest.mark.parametrize(
    ("rule", "epochs", "expected"),
    [((1, 3), 10, [1, 3, 9]), ((1, 3), 9, [1, 3]), ((2, 2), 17, [2, 4, 8, 16]), ((5, 3), 5, [])],
)
def test_rungs_are_a_geometric_series_below_the_last_epoch(rule, epochs, expected):
    assert list(rungs(Asha(min_epochs=rule[0], reduction_factor=rule[1]), epochs)) == expected


def test_of_three_peers_only_what_is_in_the_best_third_goes_on():
    peers = [curve(0.1), curve(0.2), curve(0.3)]
    cutoff = 0.1 + 2 / 3 * 0.2
    assert ends_at(curve(cutoff + 0.001), peers, RULE, 10, lower=False) is None
    assert ends_at(curve(cutoff - 0.001), peers, RULE, 10, lower=False) == 1
    lower = 0.1 + 1 / 3 * 0.2
    assert ends_at(curve(lower - 0.001), peers, RULE, 10, lower=True) is None
    assert ends_at(curve(lower + 0.001), peers, RULE, 10, lower=True) == 1


def test_it_is_the_best_value_so_far_that_counts_and_a_later_rung_only_sees_who_came_there():
    peers = [curve(0.5, 0.4, 0.3), curve(0.9)]
    assert ends_at(curve(0.95, 0.1, 0.1), peers, RULE, 10, lower=False) is None, "its first value is the best"
    assert ends_at(curve(0.9, 0.1, 0.1), [curve(0.5, 0.4, 0.95), curve(0.9)], RULE, 10, lower=False) == 3


def test_without_peers_nothing_ends_and_between_rungs_nothing_is_judged():
    assert ends_at(curve(0.0, 0.0, 0.0), [], RULE, 10, lower=False) is None
    assert ends_at([], [curve(0.5)], RULE, 10, lower=False) is None
    rule = Asha(min_epochs=4, reduction_factor=3)
    assert ends_at(curve(0.0, 0.0, 0.0), [curve(1.0, 1.0, 1.0, 1.0)], rule, 10, lower=False) is None


def test_a_rung_without_a_validation_is_judged_at_the_next_one():
    peers = [curve(0.5, 0.6, every=2)]
    assert ends_at(curve(0.1, every=2), peers, RULE, 10, lower=False) == 2


def test_the_first_of_equal_values_is_the_best():
    assert best_of(curve(0.2, 0.7, 0.7), lower=False) == (2, 0.7)
    assert best_of(curve(0.2, 0.1, 0.1), lower=True) == (2, 0.1)
    assert best_of([], lower=True) is None
