"""Products and cosines: what the plain product of a model's vectors is."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from distft.data.collate import history_batch
from distft.models.base import last_states
from distft.models.scorer import Scorer
from distft.models.transformer.config import Config
from distft.ranking import item_scores
from tests.factories import catalog, histories


def test_cosine_is_the_product_of_what_the_scorer_gives():
    torch.manual_seed(0)
    x, v = torch.randn(4, 8) * 5, torch.randn(6, 8) * 0.02
    scorer = Scorer("cosine", 0.1)
    expected = F.cosine_similarity(x[:, None], v[None], dim=2) / 0.1
    torch.testing.assert_close(scorer.states(x) @ scorer.item_vectors(v).T, expected)
    assert torch.equal(Scorer("dot", 0.1).states(x), x) and torch.equal(Scorer("dot", 0.1).item_vectors(v), v)


def test_vectors_without_direction_score_zero():
    scorer = Scorer("cosine", 0.05)
    assert not scorer.states(torch.zeros(2, 4)).any() and not scorer.item_vectors(torch.zeros(2, 4)).any()


@pytest.mark.parametrize("kind", ["dot", "cosine"])
@torch.inference_mode()
def test_a_model_ranks_by_its_scorer(kind):
    torch.manual_seed(0)
    shop = catalog()
    model = Config(dim=16, max_history=16, score=kind, temperature=0.1).build(shop).eval()
    batch = history_batch(histories([5, 9]), 16, True)
    s_BN = item_scores(model, last_states(model.states(batch), batch.length_B), batch)(2, shop.num_items)
    plain = Config(dim=16, max_history=16).build(shop).eval()
    plain.load_state_dict(model.state_dict())
    x_BD = last_states(plain.states(batch), batch.length_B)
    expected = x_BD @ plain.item_vectors(torch.arange(2, shop.num_items)).T
    if kind == "cosine":
        v_ND = plain.item_vectors(torch.arange(2, shop.num_items))
        expected = expected / x_BD.norm(dim=1)[:, None] / v_ND.norm(dim=1) / 0.1
    torch.testing.assert_close(s_BN, expected, rtol=1e-4, atol=1e-5)
