"""Samplers: they draw by the probabilities that they tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distft.losses import negatives
from distft.losses.base import Wanted
from distft.losses.negatives import Sampler, distinct, places
from distft.schema import NUM_RESERVED, Catalog
from tests.losses.toys import CATALOG, COUNTS
from tests.train.ranks import NUM_ITEMS, toy_batch

ITEMS = torch.arange(NUM_RESERVED, NUM_ITEMS)


@pytest.mark.parametrize(("sampling", "exponent"), [("uniform", 1.0), ("popularity", 0.75), ("popularity", 2.0)])
def test_draws_follow_the_told_probabilities(sampling, exponent):
    sampler = Sampler(CATALOG, sampling, exponent)
    weight = np.maximum(COUNTS[NUM_RESERVED:], 1) ** (exponent if sampling == "popularity" else 0)
    told = sampler.log_probability(ITEMS).exp()
    np.testing.assert_allclose(told.numpy(), weight / weight.sum(), rtol=1e-5)
    drawn = sampler.draw(torch.arange(100), 2000)
    share = torch.bincount(drawn.flatten() - NUM_RESERVED, minlength=len(ITEMS)) / drawn.numel()
    torch.testing.assert_close(share, told, atol=0.005, rtol=0)


def test_without_counts_popularity_draws_uniformly():
    sampler = Sampler(Catalog(NUM_ITEMS, 2, 0, False), "popularity", 1.0)
    assert sampler.log_probability(ITEMS).exp().tolist() == pytest.approx([1 / len(ITEMS)] * len(ITEMS))


def test_low_precision_training_changes_no_draw_and_no_probability():
    sampler = Sampler(CATALOG, "popularity", 0.75)
    key = torch.arange(5)
    before = sampler.draw(key, 50), sampler.log_probability(ITEMS)
    sampler.bfloat16()
    assert torch.equal(sampler.draw(key, 50), before[0])
    assert torch.equal(sampler.log_probability(ITEMS), before[1])


def test_a_step_shares_its_draw_and_positions_do_not():
    batch, sampler = toy_batch(4, 1), Sampler(CATALOG, "uniform", 1.0)
    wanted = Wanted.of(torch.zeros(4, 5, 1), batch)
    own = sampler.for_each(batch, 6)
    assert own.shape == (int(wanted.count), 6)
    assert len(own.unique(dim=0)) == len(own)
    shared = sampler.for_step(batch, 6)
    assert torch.equal(shared, sampler.for_step(toy_batch(2, 1), 6))
    assert not torch.equal(shared, sampler.for_step(toy_batch(2, 11), 6))
    assert len(sampler.for_step(toy_batch(0, 1), 6)) == 6


def test_distinct_rows_and_their_places():
    rows, count = distinct(torch.tensor([5, 9, 5, 2]), 12)
    assert (rows.tolist(), count.tolist()) == ([2, 5, 9], [1, 2, 1])
    assert places(rows, torch.tensor([[9, 3], [2, 5]]), 12).tolist() == [[2, -1], [0, 1]]


def test_a_large_catalogue_is_sorted_and_gives_the_same(monkeypatch):
    items, wanted = torch.tensor([5, 9, 5, 2]), torch.tensor([[9, 3], [2, 5], [11, 0]])
    small = (*distinct(items, 12), places(distinct(items, 12)[0], wanted, 12))
    nothing = items[:0]
    monkeypatch.setattr(negatives, "MANY_ITEMS", 1)
    large = (*distinct(items, 12), places(distinct(items, 12)[0], wanted, 12))
    assert all(torch.equal(one, two) for one, two in zip(small, large, strict=True))
    assert places(nothing, wanted, 12).tolist() == [[-1, -1]] * 3
    assert [len(one) for one in distinct(nothing, 12)] == [0, 0]
