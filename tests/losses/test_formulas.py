"""Each loss against its formula, written down plainly."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from distft.losses.adversarial.config import Config as Adversarial
from distft.losses.base import Wanted
from distft.losses.bce.config import Config as BCE
from distft.losses.gbce.config import Config as GBCE
from distft.losses.gbce.loss import target_exponent
from distft.losses.mse.config import Config as MSE
from distft.losses.sampled_softmax.config import Config as SampledSoftmax
from distft.losses.softmax.config import Config as Softmax
from distft.schema import NUM_RESERVED, PAD
from tests.losses.toys import COUNTS, built, labelled
from tests.train.ranks import DIM, NUM_ITEMS

ALL = torch.arange(NUM_ITEMS)


@pytest.fixture
def batch():
    return labelled(6)


def scores(model, batch):
    """(s_MV of all rows, target_M), by one product."""
    wanted = batch.target_BL != PAD
    return model.states(batch)[wanted] @ model.item_vectors(ALL).T, batch.target_BL[wanted]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_very_many_negatives_give_the_full_softmax(batch, sampling, label_smoothing):
    settings = {"num_negatives": 400_000, "sampling": sampling, "label_smoothing": label_smoothing}
    model, loss = built(SampledSoftmax, settings)
    _, full = built(Softmax, {"label_smoothing": label_smoothing})
    expected = full(model, model.states(batch), batch)[0]
    torch.testing.assert_close(loss(model, model.states(batch), batch)[0], expected, rtol=0.01, atol=0)


@pytest.mark.parametrize(
    "settings", [{"sampling": "popularity"}, {"sampling": "popularity", "negatives_shared": False}]
)
@torch.inference_mode()
def test_the_estimated_normaliser_is_right_on_average(batch, settings):
    model, loss = built(SampledSoftmax, {"num_negatives": 10, **settings})
    one = type(batch)(**{name: tensor[:1] for name, tensor in batch.tensors()})
    one.target_BL[:, 1:] = PAD
    one.target_BL[:, 0] = 7
    s_MV, _ = scores(model, one)
    normaliser, own = s_MV[0, NUM_RESERVED:].exp().sum(), s_MV[0, 7]
    estimates = []
    for key in range(3000):
        one.key_B.fill_(key)
        one.step_key_B.fill_(key)
        estimates.append((loss(model, model.states(one), one)[0] + own).exp())
    estimate = torch.stack(estimates)
    error = estimate.std() / math.sqrt(len(estimate))
    assert (estimate.mean() - normaliser).abs() < 4 * error < 0.1 * normaliser


def test_in_batch_negatives_are_weighed_by_their_share_of_all_targets(batch):
    model, loss = built(SampledSoftmax, {"sampling": "in_batch"})
    s_MV, target_M = scores(model, batch)
    share_V = COUNTS.clip(1) / COUNTS[NUM_RESERVED:].clip(1).sum()
    expected = 0.0
    for s_V, target in zip(s_MV, target_M.tolist(), strict=True):
        others = [s_V[u] - math.log(share_V[u] * len(target_M)) for u in target_M.tolist() if u != target]
        expected += torch.stack([s_V[target], *others]).logsumexp(0) - s_V[target]
    torch.testing.assert_close(loss(model, model.states(batch), batch)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("config", "beta"), [(BCE, 1.0), (GBCE, None)])
def test_binary_losses_weigh_the_target_against_its_negatives(batch, config, beta, shared):
    model, loss = built(config, {"num_negatives": 5, "negatives_shared": shared})
    beta = target_exponent(5, NUM_ITEMS - NUM_RESERVED, 0.75) if beta is None else beta
    s_MV, target_M = scores(model, batch)
    drawn = loss.sampler.for_step(batch, 5).expand(len(target_M), 5) if shared else loss.sampler.for_each(batch, 5)
    expected, s_MV = 0.0, s_MV - math.log(5 / beta)
    for s_V, target, negatives in zip(s_MV, target_M.tolist(), drawn.tolist(), strict=True):
        expected -= beta * F.logsigmoid(s_V[target]) / 6
        expected -= sum(F.logsigmoid(-s_V[u]) for u in negatives if u != target) / 6
    torch.testing.assert_close(loss(model, model.states(batch), batch)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [BCE, GBCE])
def test_scores_of_nothing_are_not_pushed_down_as_a_whole(batch, config):
    model, loss = built(config, {"num_negatives": 256})
    level = torch.zeros((), requires_grad=True)  # the score of every item, after every event
    with torch.no_grad():
        model.items.weight.zero_()[:, 0] = 1
    x_BLD = torch.cat([level.expand(*batch.item_BL.shape, 1), torch.zeros(*batch.item_BL.shape, DIM - 1)], 2)
    value, count = loss(model, x_BLD, batch)
    value.backward()
    assert abs(float(level.grad)) / int(count) < 0.002, "it would be 0.5 without the prior"


def test_the_exponent_of_gbce_is_between_that_of_bce_and_the_sampling_share():
    assert target_exponent(10, 101, 0.0) == pytest.approx(1.0)
    assert target_exponent(10, 101, 1.0) == pytest.approx(0.1)
    assert target_exponent(256, 3417, 0.75) == pytest.approx(0.25 + 0.75 * 256 / 3416)
    assert target_exponent(500, 101, 0.75) == pytest.approx(1.0)


def test_without_negatives_bce_takes_the_values_as_labels(batch):
    model, loss = built(BCE, {"num_negatives": 0})
    s_MV, target_M = scores(model, batch)
    own_M, label_M = s_MV.gather(1, target_M[:, None])[:, 0], (target_M % 2).float()
    expected = -(label_M * own_M.sigmoid().log() + (1 - label_M) * (1 - own_M.sigmoid()).log()).sum()
    torch.testing.assert_close(loss(model, model.states(batch), batch)[0], expected, rtol=1e-5, atol=1e-5)


def test_mse_is_the_squared_difference_from_the_value(batch):
    model, loss = built(MSE, {"offset": 3.5})
    s_MV, target_M = scores(model, batch)
    own_M = s_MV.gather(1, target_M[:, None])[:, 0]
    expected = ((3.5 + own_M - (target_M % 2)) ** 2).sum()
    torch.testing.assert_close(loss(model, model.states(batch), batch)[0], expected, rtol=1e-5, atol=1e-5)


SETTINGS = {"num_negatives": 3, "pool_size": 40, "generator_dim": 4}


def test_neither_adversary_moves_the_other(batch):
    model, loss = built(Adversarial, SETTINGS)
    value, _ = loss(model, model.states(batch), batch)
    whole = torch.autograd.grad(value, [*model.items.parameters()], retain_graph=True)
    generator = torch.autograd.grad(value, [*loss.parameters()])
    for parameter in loss.parameters():
        parameter.requires_grad_(False)
    alone = torch.autograd.grad(loss(model, model.states(batch), batch)[0], [*model.items.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(whole, alone, strict=True))
    for parameter in [*model.parameters()]:
        parameter.requires_grad_(False)
    for parameter in loss.parameters():
        parameter.requires_grad_(True)
    again = torch.autograd.grad(loss(model, model.states(batch), batch)[0], [*loss.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(generator, again, strict=True))


def test_what_is_proposed_is_of_the_pool_and_never_the_target(batch):
    model, loss = built(Adversarial, SETTINGS)
    wanted = Wanted.of(model.states(batch), batch)
    pool_P = ALL[NUM_RESERVED:]
    other_MP = pool_P != wanted.target_M[:, None]
    proposed_MP = loss._proposals(torch.zeros_like(other_MP, dtype=torch.float32), other_MP, batch, wanted)
    assert proposed_MP.sum(1).tolist() == [3.0] * len(proposed_MP)
    assert not (proposed_MP.bool() & ~other_MP).any()


def test_the_generator_learns_what_the_model_scores_high(batch):
    model, loss = built(Adversarial, SETTINGS)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    hardness = []
    for step in range(60):
        batch.step_key_B.fill_(step)
        value, count = loss(model, model.states(batch).detach(), batch)
        hardness.append(float(value.detach() / count))  # the model stays, so only better proposals raise its loss
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert sum(hardness[-10:]) > 1.2 * sum(hardness[:10])
