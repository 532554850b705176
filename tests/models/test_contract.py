"""What every model promises; models are found by scanning, so a new folder is tested by existing."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from distft.component import configs
from distft.data.collate import history_batch
from distft.models.base import last_states
from distft.ranking import item_scores
from tests.factories import catalog, histories

CATALOGS = {"all features": catalog(), "ids alone": catalog(features=False, clock=False, tokens=0)}


def build(config, shop):
    torch.manual_seed(0)
    model = config(max_history=16).build(shop).eval()
    for parameter in model.parameters():  # larger weights, so that a leak would show
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=list(CATALOGS))
def shop(request):
    return CATALOGS[request.param]


@pytest.fixture(params=configs("models"), ids=lambda config: config.model_fields["kind"].default)
def model(request, shop):
    return build(request.param, shop)


def batch_of(lengths, shop, seed=0):
    return history_batch(histories(lengths, shop.num_items, seed), 16, shop.has_clock)


@torch.inference_mode()
def test_padding_changes_nothing(model, shop):
    together = batch_of([3, 16, 9], shop)
    cut = {name: tensor[:1] if tensor.dim() == 1 else tensor[:1, :3] for name, tensor in together.tensors()}
    alone = type(together)(**cut)
    torch.testing.assert_close(model.states(together)[:1, :3], model.states(alone), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_states_are_as_wide_as_the_model_says(model, shop):
    assert model.states(batch_of([3, 16], shop)).shape == (2, 16, model.state_dim)


@torch.inference_mode()
def test_future_events_change_nothing(model, shop):
    batch = batch_of([12, 12], shop)
    before = model.states(batch)[:, :6]
    for name, tensor in batch.tensors():
        if tensor.dim() >= 2 and tensor.shape[1] == 12 and not name.startswith("target"):
            tensor[:, 6:] = tensor.flip(0)[:, 6:]
    torch.testing.assert_close(model.states(batch)[:, :6], before, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_the_order_of_a_batch_changes_nothing(model, shop):
    batch = batch_of([5, 11, 8], shop)
    order = torch.tensor([2, 0, 1])
    shuffled = type(batch)(**{name: tensor[order] for name, tensor in batch.tensors()})
    torch.testing.assert_close(model.states(shuffled), model.states(batch)[order], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_saving_and_loading_is_exact(model, shop):
    copy = deepcopy(model)
    for parameter in copy.parameters():
        torch.nn.init.zeros_(parameter)
    copy.load_state_dict(model.state_dict(), strict=True)
    batch = batch_of([5, 11], shop)
    assert torch.equal(copy.states(batch), model.states(batch))


@torch.inference_mode()
def test_catalogue_scores_equal_pair_scores(model, shop):
    batch = batch_of([5, 11], shop)
    x_BD = last_states(model.states(batch), batch.length_B)
    items_BK = torch.arange(2, shop.num_items).expand(2, -1)
    pairs_BK = model.pair_scores(x_BD, items_BK, batch, torch.arange(2))
    torch.testing.assert_close(item_scores(model, x_BD, batch)(2, shop.num_items), pairs_BK, rtol=1e-5, atol=1e-5)


def test_layer_groups_hold_every_parameter_once(model):
    grouped = [id(parameter) for group in model.layer_groups().values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


@torch.inference_mode()
def test_what_a_shop_records_changes_the_states(model, shop):
    batch = batch_of([8], shop)
    before = model.states(batch)[0, -1]
    kinds = {"item_BL": True, "event_BL": True, "gap_BL": shop.has_clock, "query_BLQ": shop.num_query_tokens > 0}
    for name, present in kinds.items():
        changed = batch_of([8], shop)
        tensor = getattr(changed, name)
        if not present or not tensor.numel():
            continue
        tensor[tensor > 1] = 2 + (tensor[tensor > 1] - 1) % 2
        if torch.equal(tensor, getattr(batch, name)):
            continue
        assert not torch.allclose(model.states(changed)[0, -1], before, atol=1e-5), name


def test_an_empty_batch_still_reaches_every_parameter(model, shop):
    batch = history_batch(histories([]), 16, shop.has_clock)
    loss = model.states(batch).sum() + model.item_vectors(torch.arange(shop.num_items)).sum()
    loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    assert np.isfinite(loss.item())
