"""Dropout: the share, the scale, the gradient, and what fixes the mask."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from distft.models.dropout import draw, dropout, keep_mask, scale_of


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_drops_the_share_and_keeps_the_mean(share):
    torch.manual_seed(0)
    x = torch.ones(400, 500)
    y = dropout(x, share, True)
    assert (y == 0).float().mean().item() == pytest.approx(share, abs=0.005)
    assert y.mean().item() == pytest.approx(1.0, rel=0.02)
    kept = y[y != 0]
    assert kept.min() == kept.max() == pytest.approx(1 / (1 - share), rel=1e-3)


def test_every_element_is_drawn_by_itself():
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(300, 999), 0.5, True) == 0).float() - 0.5
    for shift in (1, 2, 3, 4, 999):
        flat = dropped.flatten()
        assert (flat[shift:] * flat[:-shift]).mean().abs() < 0.005, f"elements {shift} apart go together"


def test_outside_of_training_nothing_is_dropped():
    x = torch.ones(10)
    assert dropout(x, 0.5, False) is x and dropout(x, 0.0, True) is x


def test_the_gradient_passes_where_the_element_did():
    x = torch.ones(50, 50, requires_grad=True)
    y = dropout(x, 0.3, True)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y.detach())


def test_torchs_generator_fixes_the_mask():
    x = torch.ones(30, 7)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5, True), dropout(x, 0.5, True)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5, True), first)
    assert not torch.equal(first, second)


def test_recomputing_drops_the_same():
    x = torch.rand(30, 7, requires_grad=True)
    torch.manual_seed(3)
    y = checkpoint(lambda x: dropout(x * x, 0.5, True), x, use_reentrant=False)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad == 0, y.detach() == 0)


def test_shares_at_the_ends_stay_finite():
    assert scale_of(0.0) == 1.0 and scale_of(1 - 1e-9) == 2**16
    random = draw((4, 5), 1)
    assert random.dtype == torch.int16 and draw((), 1).shape == ()
    assert keep_mask(random, 0.0, torch.empty(4, 5)).all()
    assert dropout(torch.ones(3, 3, dtype=torch.bfloat16), 0.5, True).dtype == torch.bfloat16
    assert dropout(torch.ones(0, 4), 0.5, True).shape == (0, 4)
