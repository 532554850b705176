"""A regression on the features of user and item: one weight for each item, category, word and number.

Enters: a Batch. Leaves: one number a state, what the user's side adds to every score; the item's side is added pair by
pair. Surprising choice: without products of the two sides all users get one ranking; it is here to be compared with.

Shape legend: B histories, L positions, N states, K items of a state, S bags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from distft.models.bags import Bags
from distft.models.base import Model
from distft.models.blocks import ItemEmbedding
from distft.schema import Batch, Catalog

if TYPE_CHECKING:
    from distft.models.linear.config import Config


class Linear(Model):
    """score = weights of the history's bags + of their counts + of the user + of the item + bias."""

    retrieval = "pair"
    state_dim = 1

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.num_items = catalog.num_items
        self.bags = Bags(catalog, 1, config.max_history)
        self.counts = nn.Linear(self.bags.num_numbers, 1)
        self.items = ItemEmbedding(catalog, 1, features=True)
        for parameter in self.parameters():  # as every regression begins: nothing has to be broken apart here
            nn.init.zeros_(parameter)

    def states(self, batch: Batch) -> Tensor:
        """x_BL1: what the user's side adds."""
        m_BlS1, numbers_BlN = self.bags(batch)
        x_Bl1: Tensor = m_BlS1.sum(2) + self.counts(numbers_BlN)
        return x_Bl1

    def item_vectors(self, items_N: Tensor) -> Tensor:
        """v_N1: what the item's side adds."""
        v_N1: Tensor = self.items(items_N)
        return v_N1

    def pair_scores(self, x_ND: Tensor, items_NK: Tensor, batch: Batch, row_N: Tensor) -> Tensor:
        """s_NK: the two sides together."""
        s_NK: Tensor = x_ND + self.item_vectors(items_NK)[..., 0]
        return s_NK

    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """embeddings: the weights of items, words and users; head: those of the counts."""
        return {
            "embeddings": [*self.bags.parameters(), *self.items.parameters()],
            "head": list(self.counts.parameters()),
        }

    def vocabularies(self) -> dict[str, str]:
        """Items, twice, their categories, query tokens, and categories of users."""
        return self.bags.vocabularies("bags") | self.items.vocabularies("items")

    def table_parts(self) -> dict[str, int]:
        """The items of the bags, once for each kind of bag."""
        return {"bags.items": self.bags.num_kinds}
