"""Small models, batches and settings that the tests of all losses share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distft.component import LossConfig
from distft.losses.base import Loss
from distft.models.base import Model
from distft.schema import Batch, Catalog
from tests.train.ranks import DIM, NUM_ITEMS, Toy, toy_batch

COUNTS = np.concatenate([[0, 0], np.arange(NUM_ITEMS - 2) ** 2]).astype(np.int64)
CATALOG = Catalog(NUM_ITEMS, 3, 0, False, counts=COUNTS, target_events=(1,))

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "softmax": [{}, {"label_smoothing": 0.2}, {"exclude_seen": "all"}],
    "sampled_softmax": [
        {"num_negatives": 9, "sampling": "popularity", "label_smoothing": 0.2},
        {"num_negatives": 9, "negatives_shared": False, "label_smoothing": 0.2},
        {"sampling": "in_batch"},
        {"num_negatives": 9, "exclude_seen": "all"},
        {"num_negatives": 9, "negatives_shared": False, "exclude_seen": "all"},
    ],
    "bce": [
        {"num_negatives": 3},
        {"num_negatives": 9, "negatives_shared": True, "sampling": "popularity"},
        {"num_negatives": 0},
        {"num_negatives": 9, "exclude_seen": "all"},
    ],
    "gbce": [
        {"num_negatives": 9},
        {"num_negatives": 4, "negatives_shared": False},
        {"num_negatives": 9, "exclude_seen": "all"},
    ],
    "adversarial": [
        {"num_negatives": 3, "pool_size": 12, "generator_dim": 4},
        {"num_negatives": 3, "pool_size": 12, "generator_dim": 4, "exclude_seen": "all"},
    ],
}
"""Settings of a loss that are tested; one that is not listed is tested with its defaults."""


class PairToy(Toy):
    """Scores a pair by a small network: no product of two vectors."""

    retrieval = "pair"

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(2 * DIM, 8), nn.ReLU(), nn.Linear(8, 1, bias=False))

    def pair_scores(self, x_ND: Tensor, items_NK: Tensor, batch: Batch, row_N: Tensor) -> Tensor:
        v_NKD = self.items(items_NK)
        x_NKD = x_ND[:, None].expand_as(v_NKD) + batch.user_row_B[row_N][:, None, None]
        return self.score(torch.cat([x_NKD, v_NKD], -1))[..., 0]


class DotAsPair(Toy):
    """The toy model, asked pair by pair: what it scores must not depend on that."""

    retrieval = "pair"


def built(config: type[LossConfig], settings: dict[str, Any], model: type[Model] = Toy) -> tuple[Model, Loss]:
    """A model and a loss with weights large enough that differences show."""
    torch.manual_seed(3)
    toy, loss = model(), config(**settings).build(CATALOG, DIM)
    for parameter in [*toy.parameters(), *loss.parameters()]:
        nn.init.normal_(parameter, std=0.7)
    return toy, loss


def labelled(rows: int, seed: int = 1) -> Batch:
    """A batch whose targets have the value 0 or 1."""
    batch = toy_batch(rows, seed)
    batch.target_value_BL = (batch.target_BL % 2).float()
    return batch


def loss_and_gradients(model: Model, loss: Loss, batch: Batch) -> tuple[Tensor, int, dict[str, Tensor]]:
    """The loss's sum, its count, and the gradient of every parameter that trains, by name."""
    module = nn.ModuleDict({"model": model, "loss": loss})
    module.zero_grad()
    loss_sum, count = loss(model, model.states(batch), batch)
    loss_sum.backward()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    missing = [name for name, p in trained.items() if p.grad is None]
    assert not missing, f"no gradient reaches {missing}"
    return loss_sum.detach(), int(count), {name: p.grad for name, p in trained.items() if p.grad is not None}
