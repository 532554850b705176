"""Bags of a user's past, and the models on top of them: each fast way beside the plain one."""

from __future__ import annotations

import pytest
import torch

from distft.data.collate import example_batch, history_batch
from distft.models.bags import Bags, asks_for_last
from distft.models.base import last_states
from distft.models.mlp.config import Config as MLPConfig
from distft.schema import NEGATIVE, NO_LABEL, POSITIVE
from tests.factories import PURCHASE, SEARCH, VIEW, catalog, histories, told_catalog, told_side

LENGTHS = [7, 1, 12, 4]


def test_a_bag_holds_the_mean_of_its_events_so_far():
    shop = told_catalog()
    bags = Bags(shop, 3, 16)
    batch = history_batch(histories(LENGTHS), 16, True, told_side())
    m_BLSD, numbers_BLN = bags(batch)
    kinds = [VIEW, PURCHASE, SEARCH, NEGATIVE, POSITIVE]
    assert m_BLSD.shape[2] == bags.num_bags == len(kinds) + 2  # searched words, and the user
    for row, length in enumerate(LENGTHS):
        for last in range(length):
            events = range(last + 1)
            label, event = batch.label_BL[row].tolist(), batch.event_BL[row].tolist()
            for place, kind in enumerate(kinds):
                if place < 3:
                    inside = [j for j in events if event[j] == kind and label[j] == NO_LABEL]
                else:
                    inside = [j for j in events if label[j] == kind]
                vectors = [bags.items.weight[place * shop.num_items + batch.item_BL[row, j]] for j in inside]
                mean = torch.stack(vectors).mean(0) if vectors else torch.zeros(3)
                torch.testing.assert_close(m_BLSD[row, last, place], mean)
                share = (len(inside) + 1) / (last + 1 + len(kinds))
                assert numbers_BLN[row, last, len(kinds) + place] == pytest.approx(2 * share - 1, abs=1e-6)
            words = [batch.query_BLQ[row, j] for j in events if batch.query_BLQ[row, j].any()]
            means = [torch.stack([bags.tokens.weight[w] for w in some if w]).mean(0) for some in words]
            mean = torch.stack(means).mean(0) if means else torch.zeros(3)
            torch.testing.assert_close(m_BLSD[row, last, 5], mean)


def test_where_only_the_last_is_asked_for_it_is_what_it_would_be_among_all():
    batch = example_batch(histories(LENGTHS), 16, True, side=told_side())
    assert asks_for_last(batch)
    model = MLPConfig(max_history=16).build(told_catalog()).eval()
    alone = last_states(model.states(batch), batch.length_B)
    batch.target_BL[0, 0] = 2
    assert not asks_for_last(batch)
    among_all = last_states(model.states(batch), batch.length_B)
    torch.testing.assert_close(alone, among_all)


@pytest.mark.parametrize("states", [2, 9])
def test_the_folded_layer_scores_many_items_as_it_scores_each(states, monkeypatch):
    monkeypatch.setattr("distft.models.mlp.model.MAX_HIDDEN", 5 * 38 * 128)
    model = MLPConfig().build(catalog()).eval()
    batch = history_batch(histories([5] * states), 16, True)
    x_ND, row_N = last_states(model.states(batch), batch.length_B), torch.arange(states)
    items_NK = torch.arange(2, 40).expand(states, -1)
    many = model.pair_scores(x_ND, items_NK, batch, row_N)
    each = [model.pair_scores(x_ND, items_NK[:, k : k + 1], batch, row_N) for k in range(38)]
    torch.testing.assert_close(many, torch.cat(each, 1), rtol=1e-5, atol=1e-5)


def test_what_differs_between_two_histories_and_two_items_is_more_than_a_sum():
    model = MLPConfig().build(catalog()).eval()
    batch = history_batch(histories([5, 9]), 16, True)
    x_ND = last_states(model.states(batch), batch.length_B)
    s_NK = model.pair_scores(x_ND, torch.tensor([[5, 9], [5, 9]]), batch, torch.arange(2))
    assert abs((s_NK[0, 0] - s_NK[0, 1]) - (s_NK[1, 0] - s_NK[1, 1])) > 1e-4


def test_a_new_model_adds_nothing_for_padding_and_no_input_drowns_the_others():
    model = MLPConfig().build(told_catalog())
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    padded = [table for table in tables if table.padding_idx is not None]
    assert len(padded) >= 5
    assert not any(table.weight[0].any() for table in padded)
    for table in [*tables, model.items.numbers, model.bags.users.numbers]:
        assert 0.05 < table.weight.std() < 0.15
