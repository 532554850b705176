"""Scores of chosen candidates: both ways to them, whole and in chunks."""

from __future__ import annotations

import pytest
import torch

from distft.losses import scores
from tests.train.ranks import Toy


@pytest.mark.parametrize("max_numbers", [1, 100, 10**6])
@pytest.mark.parametrize("dense", [0, 10**9])
def test_looking_vectors_up_and_one_product_give_the_same(dense, max_numbers, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(scores, "DENSE", dense)
    x_MD, v_UD = torch.randn(9, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    place_MK = torch.randint(0, 7, (9, 5))
    expected = torch.einsum("md,mkd->mk", x_MD, v_UD[place_MK])
    found = scores._gathered_dots(x_MD, v_UD, place_MK, max_numbers)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(9, 5)
    for left, right in zip(
        torch.autograd.grad((found * weight).sum(), [x_MD, v_UD]),
        torch.autograd.grad((expected * weight).sum(), [x_MD, v_UD]),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


def test_a_large_catalogue_is_sorted_and_gives_the_same(monkeypatch):
    model, one, two = Toy(), torch.tensor([[4, 9], [4, 2]]), torch.tensor([9, 7])
    small = scores.vectors_once(model, one, two)
    monkeypatch.setattr(scores, "MANY_ITEMS", 1)
    large = scores.vectors_once(model, one, two)
    assert len(small[0]) == 4
    assert all(torch.equal(a, b) for a, b in zip(small, large, strict=True))
