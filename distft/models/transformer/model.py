"""A causal transformer over the event sequence, after SASRec (Kang and McAuley, 2018, arXiv:1808.09781).

Enters: a Batch. Leaves: one state per event; items are ranked by the product of state and item vector, where the
item vectors are the input embeddings themselves (tied). Surprising choice: positions count from the window's
oldest event, so that padding on the right changes nothing.

Shape legend: B histories, L positions, N packed positions (or items), D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from distft.models.base import Model
from distft.models.blocks import Block, EventEmbedding, ItemEmbedding, init_normal
from distft.models.dropout import dropout
from distft.models.packing import Packing
from distft.schema import Batch, Catalog

if TYPE_CHECKING:
    from distft.models.transformer.config import Config


class Transformer(Model):
    """Self-attention over the latest ``max_history`` events."""

    retrieval = "dot"

    def __init__(self, config: Config, catalog: Catalog) -> None:
        super().__init__()
        self.num_items, self.state_dim = catalog.num_items, config.dim
        self.dropout = config.dropout
        self.scale = config.dim**0.5
        self.items = ItemEmbedding(catalog, config.dim, config.item_features)
        self.events = EventEmbedding(catalog, config.dim)
        self.positions = nn.Embedding(config.max_history, config.dim)
        hidden = int(config.dim * config.feed_forward)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.num_heads, hidden, config.dropout) for _ in range(config.num_blocks)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.apply(init_normal)

    def states(self, batch: Batch) -> Tensor:
        """x_BLD after each event, zeros at the padding."""
        packing = Packing.of(batch)
        packed = packing.pack(batch)
        v_ND = self.events(packed, self.items(packed.item_BL))[0]
        x_ND = dropout(v_ND * self.scale + self.positions(packing.position_N), self.dropout, self.training)
        for block in self.blocks:
            x_ND = self.through(block, x_ND, packing)
        return packing.unpack(self.norm(x_ND))

    def item_vectors(self, items_N: Tensor) -> Tensor:
        """v_ND: the input embeddings of the items."""
        v_ND: Tensor = self.items(items_N)
        return v_ND

    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """embeddings, blocks.0 … blocks.n-1, head."""
        embeddings = [*self.items.parameters(), *self.events.parameters(), *self.positions.parameters()]
        blocks = {f"blocks.{index}": list(block.parameters()) for index, block in enumerate(self.blocks)}
        return {"embeddings": embeddings, **blocks, "head": list(self.norm.parameters())}
