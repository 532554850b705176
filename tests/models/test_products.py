"""The faster products against torch's own, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from distft.models.products import Linear, onednn_takes, times_transposed

SIZES = [(37, 8, 24), (1, 64, 64), (300, 16, 7), (0, 8, 4)]


@pytest.mark.parametrize(("rows", "inner", "columns"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_torchs(rows, inner, columns, bias):
    torch.manual_seed(0)
    layer = Linear(inner, columns, bias)
    x = torch.randn(2, rows, inner, requires_grad=True)
    grad = torch.randn(2, rows, columns)
    parameters = [x, *layer.parameters()]
    expected = F.linear(x, layer.weight, layer.bias)
    found = layer(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for mine, torchs in zip(
        torch.autograd.grad(found, parameters, grad), torch.autograd.grad(expected, parameters, grad), strict=True
    ):
        torch.testing.assert_close(mine, torchs, atol=1e-4, rtol=1e-4)


def test_transposed_views_are_taken_as_they_are():
    torch.manual_seed(0)
    a_NK, b_KM = torch.randn(20, 30), torch.randn(30, 10)
    torch.testing.assert_close(times_transposed(a_NK, b_KM.T), a_NK @ b_KM, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(times_transposed(b_KM.T.contiguous(), a_NK), (a_NK @ b_KM).T, atol=1e-5, rtol=1e-5)


def test_other_precisions_and_machines_without_the_operator_take_torchs(monkeypatch):
    layer, x = Linear(6, 5), torch.randn(4, 6)
    expected = F.linear(x, layer.weight, layer.bias)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    layer = layer.float()
    monkeypatch.setattr("distft.models.products._has_onednn", lambda: False)
    assert not onednn_takes(x)
    torch.testing.assert_close(layer(x), expected, atol=0.05, rtol=0.05)  # the weights were rounded above


def test_frozen_weights_get_no_gradient():
    layer = Linear(6, 5).requires_grad_(False)
    x = torch.randn(4, 6, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None and layer.bias.grad is None
