"""Random numbers by key: the numbers that they should be, and as evenly spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distft.data import hashing
from distft.losses.draws import UNIT_BITS, below, gumbel, mix, numbers, place_keys, units

MANY = numbers(torch.arange(4), 50_000)


def test_mixing_is_that_of_the_data_bit_for_bit():
    values = np.array([0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15], np.uint64)
    found = mix(torch.from_numpy(values.view(np.int64)))
    assert found.numpy().view(np.uint64).tolist() == hashing.mix(values).tolist()


def test_a_number_depends_on_its_key_and_place_alone():
    assert torch.equal(numbers(torch.tensor([7]), 5), numbers(torch.tensor([3, 7, 9]), 8)[1:2, :5])
    keys = place_keys(torch.arange(100).repeat_interleave(100), torch.arange(100).repeat(100))
    assert len(keys.unique()) == 10_000
    assert len(MANY.unique()) == MANY.numel()


@pytest.mark.parametrize("size", [1, 2, 7, 8000, 2**31])
def test_numbers_below_a_size_are_evenly_spread(size):
    found = below(MANY, size)
    assert found.min() >= 0 and found.max() < size
    parts = min(size, 8)
    share = torch.bincount((found * parts // size).flatten(), minlength=parts) / found.numel()
    torch.testing.assert_close(share, torch.full((parts,), 1 / parts), atol=0.005, rtol=0)


def test_units_are_evenly_spread():
    share = units(MANY).double() / 2**UNIT_BITS
    assert share.min() >= 0 and share.max() < 1
    assert share.mean().item() == pytest.approx(0.5, abs=0.005)


def test_the_largest_with_gumbel_noise_is_a_draw_from_the_softmax():
    s = torch.tensor([0.0, 1.0, -1.0, 2.0])
    noise = gumbel(numbers(torch.arange(50_000), 4))
    assert noise.isfinite().all()
    share = torch.bincount((s + noise).argmax(1), minlength=4) / 50_000
    torch.testing.assert_close(share, s.softmax(0), atol=0.01, rtol=0)
