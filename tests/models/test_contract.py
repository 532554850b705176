"""What every model promises; models are found by scanning, so a new folder is tested by existing."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from distft.component import configs
from distft.data.collate import Side, history_batch
from distft.models.base import last_states, states_once
from distft.ranking import item_scores
from tests.factories import catalog, histories, told_catalog, told_side

CATALOGS = {
    "all features": catalog(),
    "users and labels": told_catalog(),
    "ids alone": catalog(features=False, clock=False, tokens=0),
}


def kinds():
    """Every model as its defaults make it, and as it copies, if it can."""
    for config in configs("models"):
        kind = config.model_fields["kind"].default
        yield pytest.param((config, {}), id=kind)
        if kind == "transformer":
            turned = {"positions": "rotary", "feed_forward_kind": "swiglu"}
            yield pytest.param((config, turned), id="transformer, rotary and gated")
            yield pytest.param((config, {"score": "cosine"}), id="transformer, by cosine")
        if "copy_" in config.model_fields:
            yield pytest.param((config, {"copy": True}), id=f"{kind} that copies")


def build(config, keys, shop):
    torch.manual_seed(0)
    model = config(max_history=16, **keys).build(shop).eval()
    for parameter in model.parameters():  # larger weights, so that a leak would show
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=list(CATALOGS))
def shop(request):
    return CATALOGS[request.param]


@pytest.fixture(params=kinds())
def model(request, shop):
    return build(*request.param, shop)


def batch_of(lengths, shop, seed=0):
    side = told_side() if shop.has_labels else Side()
    return history_batch(histories(lengths, shop.num_items, seed), 16, shop.has_clock, side)


def known_after(model, batch, end=None):
    """What a model says after every event of the histories, up to ``end``: its states, and its own scores."""
    x_BLD = model.states(batch)[:, :end]
    real_BL = batch.event_BL[:, :end] > 0
    row_N, position_N = real_BL.nonzero().unbind(1)
    own = model.own_scores(x_BLD[real_BL], row_N, position_N, batch)
    if own is None:
        return x_BLD
    own_NV = own.at(torch.arange(model.num_items).expand(len(row_N), -1))
    own_BLV = torch.zeros(*real_BL.shape, model.num_items)
    own_BLV[real_BL] = own_NV
    return torch.cat([x_BLD, own_BLV], 2)


@torch.inference_mode()
def test_padding_changes_nothing(model, shop):
    together = batch_of([3, 16, 9], shop)
    whole = [name for name, tensor in together.tensors() if tensor.dim() == 1 or name.startswith("user_")]
    cut = {name: tensor[:1] if name in whole else tensor[:1, :3] for name, tensor in together.tensors()}
    alone = type(together)(**cut)
    torch.testing.assert_close(known_after(model, together)[:1, :3], known_after(model, alone), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_states_are_as_wide_as_the_model_says(model, shop):
    assert model.states(batch_of([3, 16], shop)).shape == (2, 16, model.state_dim)


@torch.inference_mode()
def test_future_events_change_nothing(model, shop):
    batch = batch_of([12, 12], shop)
    before = known_after(model, batch, 6)
    for name, tensor in batch.tensors():
        if tensor.dim() >= 2 and tensor.shape[1] == 12 and not name.startswith("target"):
            tensor[:, 6:] = tensor.flip(0)[:, 6:]
    torch.testing.assert_close(known_after(model, batch, 6), before, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_the_order_of_a_batch_changes_nothing(model, shop):
    batch = batch_of([5, 11, 8], shop)
    order = torch.tensor([2, 0, 1])
    shuffled = type(batch)(**{name: tensor[order] for name, tensor in batch.tensors()})
    torch.testing.assert_close(known_after(model, shuffled), known_after(model, batch)[order], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_history_that_comes_several_times_in_a_row_is_computed_once(model, shop, monkeypatch):
    batch = batch_of([5, 11, 8], shop)
    order = torch.tensor([0, 0, 1, 2, 2, 2])
    repeated = type(batch)(**{name: tensor[order] for name, tensor in batch.tensors()})
    seen = []
    states = model.states
    monkeypatch.setattr(model, "states", lambda one: seen.append(len(one.length_B)) or states(one))
    x_BLD = states_once(model, repeated)
    assert seen == [3]
    torch.testing.assert_close(x_BLD, states(repeated), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_saving_and_loading_is_exact(model, shop):
    copy = deepcopy(model)
    for parameter in copy.parameters():
        torch.nn.init.zeros_(parameter)
    copy.load_state_dict(model.state_dict(), strict=True)
    batch = batch_of([5, 11], shop)
    assert torch.equal(known_after(copy, batch), known_after(model, batch))


@torch.inference_mode()
def test_catalogue_scores_equal_pair_scores_and_what_is_added_to_them(model, shop):
    batch = batch_of([5, 11], shop)
    x_BD = last_states(model.states(batch), batch.length_B)
    items_BK = torch.arange(2, shop.num_items).expand(2, -1)
    pairs_BK = model.pair_scores(x_BD, items_BK, batch, torch.arange(2))
    own = model.own_scores(x_BD, torch.arange(2), batch.length_B - 1, batch)
    if own is not None:
        assert own.at(items_BK).any()
        pairs_BK = pairs_BK + own.at(items_BK)
    torch.testing.assert_close(item_scores(model, x_BD, batch)(2, shop.num_items), pairs_BK, rtol=1e-5, atol=1e-5)


def test_layer_groups_hold_every_parameter_once(model):
    grouped = [id(parameter) for group in model.layer_groups().values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


@torch.inference_mode()
def test_what_a_shop_records_changes_the_states(model, shop):
    batch = batch_of([8], shop)
    before = model.states(batch)[0, -1]
    bags = hasattr(model, "bags")  # which know no order and no time, but users and what they liked
    kinds = {
        "item_BL": True,
        "event_BL": True,
        "gap_BL": shop.has_clock and not bags,
        "query_BLQ": shop.num_query_tokens > 0,
        "label_BL": shop.has_labels and bags,
        "user_codes_BK": shop.has_labels and bags,
    }
    for name, present in kinds.items():
        changed = batch_of([8], shop)
        tensor = getattr(changed, name)
        if not present or not tensor.numel():
            continue
        tensor[tensor > 1] = 2 + (tensor[tensor > 1] - 1) % 2
        if torch.equal(tensor, getattr(batch, name)):
            continue
        assert not torch.allclose(model.states(changed)[0, -1], before, atol=1e-5), name


@torch.inference_mode()
def test_low_precision_gives_about_the_same(shop, model):
    batch = batch_of([5, 11], shop)
    exact = known_after(model, batch)
    low = known_after(deepcopy(model).bfloat16(), batch)
    assert float((low.float() - exact).abs().mean() / exact.abs().mean()) < 0.1


def test_an_empty_batch_still_reaches_every_parameter(model, shop):
    batch = batch_of([], shop)
    x_BLD, nothing = model.states(batch), torch.zeros(0, dtype=torch.int64)
    loss = x_BLD.sum() + model.item_vectors(torch.arange(shop.num_items)).sum()
    own = model.own_scores(x_BLD.flatten(0, 1), nothing, nothing, batch)
    loss = loss if own is None else loss + own.bonus_P.sum()
    if model.retrieval == "pair":
        loss = loss + model.pair_scores(x_BLD[:, 0], torch.zeros(0, 3, dtype=torch.int64), batch, nothing).sum()
    loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    assert np.isfinite(loss.item())
