"""The chunked softmax against torch's own cross-entropy."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from distft.losses.softmax.config import Config
from distft.losses.softmax.loss import chunked_cross_entropy
from distft.models.base import OwnScores


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("max_logits", [1, 100, 10**6])
def test_value_and_gradients_equal_the_plain_loss(label_smoothing, max_logits):
    torch.manual_seed(0)
    x_MD = torch.randn(37, 8, dtype=torch.float64, requires_grad=True)
    v_VD = torch.randn(29, 8, dtype=torch.float64, requires_grad=True)
    target_M = torch.randint(0, 29, (37,))
    plain = F.cross_entropy(x_MD @ v_VD.T, target_M, reduction="sum", label_smoothing=label_smoothing)
    expected = torch.autograd.grad(3 * plain, [x_MD, v_VD])
    loss = chunked_cross_entropy(x_MD.float(), v_VD.float(), target_M, label_smoothing, max_logits)
    torch.testing.assert_close(loss, plain.float(), rtol=1e-5, atol=1e-4)
    x, v = x_MD.detach().float().requires_grad_(), v_VD.detach().float().requires_grad_()
    (3 * chunked_cross_entropy(x, v, target_M, label_smoothing, max_logits)).backward()
    torch.testing.assert_close(x.grad, expected[0].float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(v.grad, expected[1].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("max_logits", [1, 100, 10**6])
def test_additions_to_single_logits_equal_the_plain_loss(label_smoothing, max_logits):
    torch.manual_seed(0)
    x, v = torch.randn(37, 8, requires_grad=True), torch.randn(29, 8, requires_grad=True)
    state = torch.randint(0, 37, (200,)).sort().values  # some states have none, some items come twice in a state
    item, bonus = torch.randint(0, 29, (200,)), (3 * torch.randn(200)).requires_grad_()
    target = torch.randint(0, 29, (37,))
    logits = (x @ v.T).index_put((state, item), bonus, accumulate=True)
    plain = F.cross_entropy(logits, target, reduction="sum", label_smoothing=label_smoothing)
    loss = chunked_cross_entropy(x, v, target, label_smoothing, max_logits, OwnScores(state, item + 2, bonus))
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-4)
    found = torch.autograd.grad(3 * loss, [x, v, bonus])
    for mine, torchs in zip(found, torch.autograd.grad(3 * plain, [x, v, bonus]), strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-4)


def test_no_targets_give_zero_and_zero_gradients():
    x = torch.randn(0, 4, requires_grad=True)
    v = torch.randn(5, 4, requires_grad=True)
    loss = chunked_cross_entropy(x, v, torch.zeros(0, dtype=torch.int64), 0.0, 100)
    loss.backward()
    assert loss.item() == 0
    assert not v.grad.any()


def test_no_targets_give_additions_a_gradient_of_nothing():
    x, v, nothing = torch.randn(0, 4), torch.randn(5, 4), torch.zeros(0, dtype=torch.int64)
    bonus = torch.zeros(0, requires_grad=True)
    chunked_cross_entropy(x, v, nothing, 0.0, 100, OwnScores(nothing, nothing, bonus)).backward()
    assert bonus.grad is not None


def test_frozen_item_vectors_cost_no_gradient():
    x, v = torch.randn(6, 4, requires_grad=True), torch.randn(5, 4)
    chunked_cross_entropy(x, v, torch.arange(5).repeat(2)[:6], 0.0, 100).backward()
    assert x.grad is not None and v.grad is None


def test_config_refuses_full_smoothing():
    with pytest.raises(ValueError, match="label_smoothing"):
        Config(label_smoothing=1.0)


def test_one_thread_and_several_agree():
    torch.manual_seed(0)
    x, v = torch.randn(700, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    target, before, found = torch.randint(0, 40, (700,)), torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        loss = chunked_cross_entropy(x, v, target, 0.1, 4000)
        found.append((loss, *torch.autograd.grad(loss, [x, v])))
    torch.set_num_threads(before)
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-5)
