"""Packing and attention: the packed batch against the padded one, the fast attention against torch's."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from distft.models.attention import attend, attend_plainly
from distft.models.dropout import keep_mask
from distft.models.packing import CPU_CELLS, Packing
from distft.models.transformer.config import Config
from distft.schema import Batch, Catalog

LENGTHS = [[5, 1, 0, 9, 9, 3, 40, 38, 2, 17], [7, 7, 7], [1], [0, 0], [], [60, 60, 59, 30, 20, 20, 4]]


def batch_of(lengths: list[int]) -> Batch:
    length_B = torch.tensor(lengths, dtype=torch.int64)
    real_BL = torch.arange(max([1, *lengths])) < length_B[:, None]
    item_BL = torch.randint(2, 50, real_BL.shape) * real_BL
    return Batch(
        item_BL=item_BL,
        event_BL=real_BL.long(),
        gap_BL=torch.randint(0, 9, real_BL.shape) * real_BL,
        query_BLQ=torch.randint(0, 9, (*real_BL.shape, 2)) * real_BL[..., None],
        length_B=length_B,
        target_BL=item_BL,
        target_value_BL=torch.rand(real_BL.shape),
        user_row_B=torch.arange(len(lengths)),
        key_B=torch.zeros_like(length_B),
        step_key_B=torch.zeros_like(length_B),
        label_BL=torch.randint(0, 3, real_BL.shape) * real_BL,
        user_codes_BK=torch.zeros(len(lengths), 1, dtype=torch.int64),
        user_numbers_BG=torch.zeros(len(lengths), 2),
    )


@pytest.mark.parametrize("lengths", LENGTHS)
def test_packing_holds_each_position_once_and_goes_back(lengths):
    batch = batch_of(lengths)
    packing = Packing.of(batch)
    assert len(packing.index_N) == sum(max(1, length) for length in lengths)
    packed = packing.pack(batch)
    assert packed.item_BL.shape == (1, len(packing.index_N))
    assert packed.query_BLQ.shape == (1, len(packing.index_N), 2)
    x_BLD = torch.rand(*batch.item_BL.shape, 3)
    real_BL = torch.arange(batch.item_BL.shape[1]) < batch.length_B.clamp(min=1)[:, None]
    x_ND = x_BLD.flatten(0, 1)[packing.index_N]
    assert torch.equal(packing.unpack(x_ND), x_BLD * real_BL[..., None])
    assert torch.equal(packing.position_N, packing.index_N % batch.item_BL.shape[1])
    stripped = [group.strip(group.pad(x_ND)) for group in packing.groups]
    assert torch.equal(torch.cat([x_ND[:0], *stripped]), x_ND)


def test_groups_are_small_and_of_similar_length():
    torch.manual_seed(0)
    packing = Packing.of(batch_of(torch.randint(1, 200, (128,)).tolist()))
    computed = sum(group.rows * group.length for group in packing.groups)
    assert computed <= 1.15 * len(packing.index_N)
    assert all(group.rows == 1 or group.rows * group.length**2 <= CPU_CELLS for group in packing.groups)
    assert len(packing.groups) <= 25


@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention_equals_torchs_with_values_and_gradients(lengths):
    torch.manual_seed(1)
    packing = Packing.of(batch_of(lengths))
    qkv = (2 * torch.randn(len(packing.index_N), 3, 2, 8)).requires_grad_()
    found, expected = attend(qkv, packing, 0.0), attend_plainly(qkv, packing, 0.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    grad = torch.randn_like(found)
    mine, torchs = torch.autograd.grad(found, qkv, grad), torch.autograd.grad(expected, qkv, grad)
    torch.testing.assert_close(mine[0], torchs[0], atol=2e-5, rtol=1e-4)


def test_dropout_equals_the_textbook_with_the_same_mask(monkeypatch):
    torch.manual_seed(1)
    length, share = 12, 0.3
    packing = Packing.of(batch_of([length] * 3))
    random = torch.randint(-(2**15), 2**15, (6, length, length)).short()
    monkeypatch.setattr("distft.models.attention.draw", lambda shape, seed: random.view(shape))
    qkv = torch.randn(3 * length, 3, 2, 4, requires_grad=True)
    found = attend(qkv, packing, share)
    q, k, v = qkv.view(3, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
    score = (q @ k.transpose(2, 3) / math.sqrt(4)).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    keep = keep_mask(random, share, torch.empty(random.shape)).view_as(score) / (1 - round(share * 2**16) / 2**16)
    expected = ((F.softmax(score, -1) * keep) @ v).transpose(1, 2).reshape(found.shape)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    grad = torch.randn_like(found)
    mine, torchs = torch.autograd.grad(found, qkv, grad), torch.autograd.grad(expected, qkv, grad)
    torch.testing.assert_close(mine[0], torchs[0], atol=2e-5, rtol=1e-4)


def test_one_thread_and_several_agree_with_the_same_masks():
    packing = Packing.of(batch_of([60, 60, 59, 30, 20, 20, 4]))
    qkv = torch.randn(len(packing.index_N), 3, 2, 8, requires_grad=True)
    found, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(5)
        y = attend(qkv, packing, 0.3)
        found.append((y, *torch.autograd.grad(y.square().sum(), qkv)))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


def test_large_scores_do_not_overflow():
    packing = Packing.of(batch_of([20, 18]))
    qkv = (200 * torch.randn(38, 3, 1, 8)).requires_grad_()
    attend(qkv, packing, 0.0).sum().backward()
    assert qkv.grad is not None and qkv.grad.isfinite().all()


def test_recomputing_keeps_a_fraction_of_the_activations():
    def kept_bytes(recompute: bool) -> int:
        sizes: dict[int, int] = {}
        model.recompute = recompute
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t, lambda t: t
        )
        with hooks:
            model.states(batch)
        return sum(sizes.values())

    torch.manual_seed(0)
    catalog = Catalog(num_items=50, num_events=2, num_query_tokens=0, has_clock=False)
    model = Config(dim=16, num_blocks=3, max_history=60).build(catalog)
    batch = batch_of([60] * 20)
    assert kept_bytes(True) < 0.2 * kept_bytes(False)
