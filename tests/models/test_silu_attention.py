"""HSTU's attention: the fast path against torch's operations, and both against the formula."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from distft.models.packing import Packing
from distft.models.silu_attention import attend, attend_plainly
from tests.models.test_attention import LENGTHS, batch_of

MAX_HISTORY, NUM_CODES = 64, 34


def inputs(packing, heads=2, width=8):
    torch.manual_seed(1)
    codes = tuple(torch.randint(0, NUM_CODES, (g.rows, g.length, g.length)).to(torch.uint8) for g in packing.groups)
    qkv = torch.randn(len(packing.index_N), 3, heads, width, requires_grad=True)
    tables = [torch.randn(size, requires_grad=True) for size in (MAX_HISTORY, NUM_CODES)]
    return qkv, *tables, codes


@pytest.mark.parametrize("clock", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_fast_equals_plain_with_values_and_gradients(lengths, clock):
    packing = Packing.of(batch_of(lengths))
    qkv, distance, elapsed, codes = inputs(packing)
    given = [qkv, distance, *([elapsed] if clock else [])]
    found = attend(qkv, distance, elapsed if clock else None, packing, codes)
    expected = attend_plainly(qkv, distance, elapsed if clock else None, packing, codes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    grad = torch.randn_like(found)
    mine = torch.autograd.grad(found, given, grad, allow_unused=True, materialize_grads=True)
    torchs = torch.autograd.grad(expected, given, grad, allow_unused=True, materialize_grads=True)
    for fast, plain in zip(mine, torchs, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


def test_each_position_sums_the_values_up_to_it():
    packing = Packing.of(batch_of([5]))
    qkv, distance, elapsed, codes = inputs(packing, heads=1)
    found = attend(qkv, distance, elapsed, packing, codes)
    q, k, v = qkv[:, :, 0].unbind(1)
    for i in range(5):
        weights = [F.silu(q[i] @ k[j] + distance[i - j] + elapsed[int(codes[0][0, i, j])]) for j in range(i + 1)]
        expected = sum(w * v[j] for j, w in enumerate(weights)) / MAX_HISTORY
        torch.testing.assert_close(found[i, 0], expected, atol=1e-5, rtol=1e-4)


def test_one_thread_and_several_agree():
    packing = Packing.of(batch_of([60, 60, 59, 30, 20, 20, 4]))
    qkv, distance, elapsed, codes = inputs(packing)
    found, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        y = attend(qkv, distance, elapsed, packing, codes)
        found.append((y, *torch.autograd.grad(y.square().sum(), [qkv, distance, elapsed])))
    torch.set_num_threads(before)
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)
