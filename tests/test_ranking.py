"""Exclusion rules, and the list of a visitor without a history."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distft import ranking, topk
from distft.data import ragged
from distft.data.collate import history_batch
from distft.models.base import OwnScores
from distft.models.transformer.config import Config
from distft.ranking import DotScores, Ranker, dot_ranks, excluded_items
from distft.schema import Histories
from distft.topk import target_ranks
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


def test_what_one_history_rules_out_is_left_to_the_others():
    some = [history((9, VIEW), (4, VIEW)), history((0, SEARCH), (1, VIEW)), history((4, VIEW), (4, VIEW), (2, VIEW))]
    excluded = excluded_items(ragged.concat([*some, histories([0])]), "all", TARGETS)
    assert excluded is not None
    assert [items.tolist() for items in excluded] == [[4, 9], [], [2, 4], []]
    assert excluded_items(ragged.empty(), "all", TARGETS) == []


def test_no_rule_leaves_out_nothing():
    assert excluded_items(histories([4]), "none", TARGETS) is None


@pytest.fixture(scope="module", params=[False, True], ids=["as it is", "copying"])
def ranker(request):
    torch.manual_seed(0)
    counts = np.concatenate([[0, 0], np.arange(38, 0, -1)]).astype(np.int64)
    model = Config(max_history=16, copy=request.param).build(catalog())
    return Ranker(
        model, 16, SimpleNamespace(has_clock=True, user_features=(), label_codes=np.zeros(0, np.int8), counts=counts)
    )


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


def test_dot_scores_are_the_matrix_product():
    x_BD, v_ND = torch.randn(3, 8), torch.randn(20, 8)
    torch.testing.assert_close(DotScores(x_BD, v_ND)(4, 9), x_BD @ v_ND[4:9].T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_rows", [1, 5, 70])
def test_ranks_from_vectors_are_those_of_one_matrix_of_scores(monkeypatch, num_rows):
    """Also among items with the very same vector, and however the rows and columns are cut."""
    monkeypatch.setattr(topk, "CHUNK_SCORES", 500)
    monkeypatch.setattr(ranking, "BATCH_ROWS", 32)
    rng = np.random.default_rng(num_rows)
    v_ND = torch.from_numpy(rng.normal(size=(30, 16)).astype(np.float32))[rng.integers(0, 30, 400)]
    x_BD = torch.from_numpy(rng.normal(size=(num_rows, 16)).astype(np.float32))
    target_B = torch.from_numpy(rng.integers(0, 400, num_rows))
    excluded = [rng.integers(0, 400, 20).astype(np.int32) for _ in range(num_rows)]
    s_BN = torch.cat([DotScores(x_BD, v_ND)(start, start + 10) for start in range(0, 400, 10)], 1)
    expected = target_ranks(lambda a, b: s_BN[:, a:b], 400, target_B, excluded)
    assert torch.equal(dot_ranks(x_BD, v_ND, target_B, excluded), expected)
    assert dot_ranks(x_BD[:0], v_ND, target_B[:0]).tolist() == []


def test_what_a_model_adds_to_a_target_is_known_beforehand():
    """Else every target that its history holds would cost a second pass."""
    own = OwnScores(torch.tensor([0, 0, 0, 2]), torch.tensor([7, 7, 3, 11]), torch.tensor([0.1, 0.7, 0.3, 0.9]))
    scores, target_B = DotScores(torch.randn(3, 16), torch.randn(40, 16), own), torch.tensor([7, 7, 11])
    chunk_BC = torch.cat([scores(start, start + 20) for start in (0, 20)], 1)
    torch.testing.assert_close(scores.of(target_B), chunk_BC.gather(1, target_B[:, None])[:, 0], rtol=1e-6, atol=1e-6)
    plain = DotScores(scores.x_BD, scores.vectors_ND)
    assert (scores.of(target_B) - plain.of(target_B)).tolist() == pytest.approx([0.8, 0, 0.9], abs=1e-5)
