"""Exclusion rules, and the list of a visitor without a history."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distft.data.collate import history_batch
from distft.models.transformer.config import Config
from distft.ranking import Ranker, excluded_items
from distft.schema import Histories
from tests.factories import PURCHASE, SEARCH, VIEW, catalog, histories

TARGETS = np.array([PURCHASE], np.int8)


def history(*events: tuple[int, int]) -> Histories:
    item, event = zip(*events, strict=True)
    zeros = np.zeros(len(events), np.int64)
    offsets = np.array([0, len(events)])
    queries = np.zeros(len(events) + 1, np.int64)
    tokens = np.zeros(0, np.int32)
    return Histories(
        offsets, np.array(item, np.int32), np.array(event, np.int8), zeros, queries, tokens, np.zeros(1, np.int32)
    )


@pytest.mark.parametrize(("rule", "expected"), [("all", [4, 5, 9]), ("targets", [5, 9])])
def test_a_rule_leaves_out_each_real_item_once(rule, expected):
    seen = history((4, VIEW), (5, PURCHASE), (0, SEARCH), (1, VIEW), (5, VIEW), (9, PURCHASE), (5, PURCHASE))
    excluded = excluded_items(seen, rule, TARGETS)
    assert excluded is not None
    assert [items.tolist() for items in excluded] == [expected]


def test_no_rule_leaves_out_nothing():
    assert excluded_items(histories([4]), "none", TARGETS) is None


@pytest.fixture(scope="module", params=[False, True], ids=["as it is", "copying"])
def ranker(request):
    torch.manual_seed(0)
    counts = np.concatenate([[0, 0], np.arange(38, 0, -1)]).astype(np.int64)
    model = Config(max_history=16, copy=request.param).build(catalog())
    return Ranker(model, 16, SimpleNamespace(has_clock=True, counts=counts))


def test_an_empty_history_gets_the_popularity_list_and_changes_no_other(ranker):
    mixed = ranker.top_k(histories([5, 0]), 6, None)
    assert mixed.rows_BK[1].tolist() == [2, 3, 4, 5, 6, 7]
    alone = ranker.top_k(histories([5]), 6, None)
    torch.testing.assert_close(mixed.scores_BK[:1], alone.scores_BK, rtol=1e-5, atol=1e-6)


def test_a_rank_is_the_place_in_the_list(ranker):
    some = histories([5, 9, 0, 20])
    excluded = excluded_items(some, "all", TARGETS)
    listed = ranker.top_k(some, 38, excluded).rows_BK.numpy()
    for place in (0, 3, 7):
        targets = listed[:, place].astype(np.int32)
        assert ranker.ranks(some, targets, excluded).tolist() == [place + 1] * 4


def test_scores_are_the_product_of_state_and_item_vector_and_what_a_model_adds(ranker):
    some = histories([5, 9])
    batch = history_batch(some, 16, True)
    with torch.inference_mode():
        states = ranker.model.states(batch)[torch.arange(2), batch.length_B - 1]
        expected = states @ ranker.model.item_vectors(torch.arange(40)).T
        own = ranker.model.own_scores(states, torch.arange(2), batch.length_B - 1, batch)
        expected += 0 if own is None else own.at(torch.arange(40).expand(2, -1))
    torch.testing.assert_close(ranker.scores(some)(0, 40), expected, rtol=1e-5, atol=1e-6)
