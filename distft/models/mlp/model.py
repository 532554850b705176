"""Hidden layers over bags of a user's past, what is known of the user, a candidate item, and their products.

After the neural recommenders of the textbooks (Covington et al., 2016, doi:10.1145/2959100.2959190; He et al., 2017,
arXiv:1708.05031). Enters: a Batch. Leaves: a state of bags and counts; scores, pair by pair. Surprising choice: the
first layer is folded where many items are scored for one state. Its product with (bag * item) is a product of the item
with (bag * weights), which is made once a state, and so no input of a pair is ever written down.

Shape legend: B histories, L positions, N states, K items of a state, D width, S bags, M numbers, H hidden units.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distft.models.bags import Bags
from distft.models.base import Model
from distft.models.blocks import ItemEmbedding, init_normal
from distft.models.dropout import dropout
from distft.schema import Batch, Catalog

if TYPE_CHECKING:
    from distft.models.mlp.config import Config

EMBEDDING_STD = 0.1
MAX_HIDDEN = 1 << 22
"""Numbers of the first hidden layer that are held at once when a catalogue is scored."""


class MLP(Model):
    """One score for each pair of a state and an item."""

    retrieval = "pair"

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.num_items = catalog.num_items
        self.dim, self.dropout = config.dim, config.dropout
        self.bags = Bags(catalog, config.dim, config.max_history)
        self.items = ItemEmbedding(catalog, config.dim, config.item_features)
        # Also what numbers are multiplied with: by torch's own rule one number would drown the items.
        self.apply(partial(init_normal, std=EMBEDDING_STD))
        self.state_dim = self.bags.num_bags * config.dim + self.bags.num_numbers
        self.first = FirstLayer(self.state_dim, self.bags.num_bags, config.dim, config.hidden[0])
        widths = zip(config.hidden[:-1], config.hidden[1:], strict=True)
        self.layers = nn.ModuleList(nn.Linear(inner, outer) for inner, outer in widths)
        self.head = nn.Linear(config.hidden[-1], 1)

    def states(self, batch: Batch) -> Tensor:
        """x_BLX: the bags, then the numbers."""
        m_BlSD, numbers_BlM = self.bags(batch)
        return torch.cat([m_BlSD.flatten(2), numbers_BlM], 2)

    def item_vectors(self, items_N: Tensor) -> Tensor:
        """v_ND: the candidates' embeddings."""
        v_ND: Tensor = self.items(items_N)
        return v_ND

    def pair_scores(self, x_ND: Tensor, items_NK: Tensor, batch: Batch, row_N: Tensor) -> Tensor:
        """s_NK, a few states at a time where there are many items."""
        num_states, num_items = items_NK.shape
        size = max(1, MAX_HIDDEN // max(1, num_items * self.first.bias_H.numel()))
        if num_states <= size:
            return self._scores(x_ND, items_NK)
        starts = range(0, num_states, size)
        return torch.cat([self._scores(x_ND[start : start + size], items_NK[start : start + size]) for start in starts])

    def _scores(self, x_ND: Tensor, items_NK: Tensor) -> Tensor:
        h_NKH = self._drop(F.relu(self.first(x_ND, self.item_vectors(items_NK))))
        for layer in self.layers:
            h_NKH = self._drop(F.relu(layer(h_NKH)))
        s_NK: Tensor = self.head(h_NKH)[..., 0]
        return s_NK

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)

    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """embeddings, blocks.0 … blocks.n-1 (the hidden layers), head."""
        hidden = {f"blocks.{index}": list(layer.parameters()) for index, layer in enumerate((self.first, *self.layers))}
        embeddings = [*self.bags.parameters(), *self.items.parameters()]
        return {"embeddings": embeddings, **hidden, "head": list(self.head.parameters())}

    def vocabularies(self) -> dict[str, str]:
        """Items, twice, their categories, query tokens, and categories of users."""
        return self.bags.vocabularies("bags") | self.items.vocabularies("items")

    def table_parts(self) -> dict[str, int]:
        """The items of the bags, once for each kind of bag."""
        return {"bags.items": self.bags.num_kinds}


class FirstLayer(nn.Module):
    """A linear layer of (state, item, each bag * item), for one item a state or for many."""

    def __init__(self, state_dim: int, num_bags: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.num_bags, self.dim = num_bags, dim
        self.state_HX = nn.Parameter(torch.empty(hidden, state_dim))
        self.item_HD = nn.Parameter(torch.empty(hidden, dim))
        self.cross_HC = nn.Parameter(torch.empty(hidden, num_bags * dim))
        self.bias_H = nn.Parameter(torch.zeros(hidden))
        bound = (state_dim + dim + num_bags * dim) ** -0.5  # that of one layer of all these inputs
        for weight in (self.state_HX, self.item_HD, self.cross_HC):
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x_NX: Tensor, v_NKD: Tensor) -> Tensor:
        """h_NKH."""
        m_NSD = x_NX[:, : self.num_bags * self.dim].view(len(x_NX), self.num_bags, self.dim)
        base_NH = F.linear(x_NX, self.state_HX, self.bias_H)
        if v_NKD.shape[1] == 1:
            crossed_NC = (m_NSD * v_NKD).flatten(1)
            return (base_NH + F.linear(v_NKD[:, 0], self.item_HD) + F.linear(crossed_NC, self.cross_HC))[:, None]
        cross_HSD = self.cross_HC.view(-1, self.num_bags, self.dim)
        folded_NHD = self.item_HD + torch.einsum("nsd,hsd->nhd", m_NSD, cross_HSD)
        return base_NH[:, None] + v_NKD @ folded_NHD.transpose(1, 2)
