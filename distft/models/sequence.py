"""What the models over a sequence of events share: embed the events, go through blocks, rank by a dot product.

Enters: a Batch. Leaves: one state per event; items are ranked by the product of state and item vector, where the item
vectors are the input embeddings themselves (tied). Surprising choice: all blocks see the packed positions, of real
events alone, and whatever looks along a history asks the packing where it lies.

Shape legend: B histories, L positions, N packed positions (or items), D width.
"""

from __future__ import annotations

from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from distft.models.base import Model, OwnScores
from distft.models.blocks import EventEmbedding, ItemEmbedding, init_normal
from distft.models.copying import Copying, own_scores
from distft.models.dropout import dropout
from distft.models.memo import Memo
from distft.models.packing import Packing
from distft.models.scorer import Scorer
from distft.schema import Batch, Catalog

if TYPE_CHECKING:
    from distft.component import SequenceConfig


class SequenceModel(Model):
    """Blocks over the latest ``max_history`` events, each called with x_ND, the packing, and what ``look`` found."""

    retrieval = "dot"

    def __init__(self, config: SequenceConfig, catalog: Catalog) -> None:
        super().__init__()
        self.num_items, self.state_dim = catalog.num_items, config.dim
        self.dropout = config.dropout
        self.scale = config.dim**0.5
        self.scorer = Scorer(config.score, config.temperature)
        self.items = ItemEmbedding(catalog, config.dim, config.item_features)
        self.events = EventEmbedding(catalog, config.dim)
        # Positions count from the window's oldest event, so that padding on the right changes nothing.
        self.positions = nn.Embedding(config.max_history, config.dim) if self.has_positions(config) else None
        self.blocks = nn.ModuleList(self.new_block(config, catalog) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.apply(init_normal)
        self.memo: Memo | None = None
        self.num_remembered = 0
        self.copying = Copying(catalog, config.dim) if config.copy_ else None  # keeps its zeros

    def has_positions(self, config: Any) -> bool:
        """True where a learnt embedding of its position is added to each event."""
        return False

    def new_block(self, config: Any, catalog: Catalog) -> nn.Module:
        """A block: forward(x_ND, packing, what ``look`` found) → x_ND."""
        raise NotImplementedError

    def look(self, packing: Packing, packed: Batch) -> Any:
        """What all blocks want to know of a batch beside the states, found once."""
        return None

    def states(self, batch: Batch) -> Tensor:
        """x_BLD after each event, zeros at the padding."""
        packing = Packing.of(batch)
        packed = packing.pack(batch)
        found = self.look(packing, packed)
        below = partial(self._lowest, packed, packing, found)
        x_ND = below() if self.memo is None or not self.training else self.memo.of(batch, packing, below)
        for block in self.blocks[self.num_remembered :]:
            x_ND = self.through(block, x_ND, packing, found)
        return packing.unpack(self.scorer.states(self.norm(x_ND)))

    def _lowest(self, packed: Batch, packing: Packing, found: Any) -> Tensor:
        """x_ND of the embeddings, after the blocks whose outputs are remembered."""
        x_ND = self.events(packed, self.items(packed.item_BL))[0] * self.scale
        if self.positions is not None:
            x_ND = x_ND + self.positions(packing.position_N)
        # Of the embeddings, not of the whole: where these are frozen they give the same in every epoch.
        x_ND = dropout(x_ND, self.dropout, self.items.training)
        for block in self.blocks[: self.num_remembered]:
            x_ND = self.through(block, x_ND, packing, found)
        return x_ND

    def remember(self, memo: Memo) -> list[str]:
        """The embeddings, and the blocks after them, up to the first that trains."""
        groups = [(name, group) for name, group in self.layer_groups().items() if name != "head"]
        is_frozen = (not any(parameter.requires_grad for parameter in group) for _, group in groups)
        names = [name for (name, _), _ in zip(groups, takewhile(bool, is_frozen), strict=False)]
        if names:
            self.memo, self.num_remembered = memo, len(names) - 1
        return names

    def item_vectors(self, items_N: Tensor) -> Tensor:
        """v_ND: the input embeddings of the items, as the scorer takes them."""
        return self.scorer.item_vectors(self.items(items_N))

    def own_scores(self, x_ND: Tensor, row_N: Tensor, position_N: Tensor, batch: Batch) -> OwnScores | None:
        """The additions of ``copy: true``."""
        return None if self.copying is None else own_scores(self.copying, x_ND, row_N, position_N, batch)

    def layer_groups(self) -> dict[str, list[nn.Parameter]]:
        """embeddings, blocks.0 … blocks.n-1, head."""
        positions = [] if self.positions is None else [*self.positions.parameters()]
        copying = [] if self.copying is None else [*self.copying.parameters()]
        return {
            "embeddings": [*self.items.parameters(), *self.events.parameters(), *positions],
            **{f"blocks.{index}": list(block.parameters()) for index, block in enumerate(self.blocks)},
            "head": [*self.norm.parameters(), *copying],
        }

    def vocabularies(self) -> dict[str, str]:
        """Items, their categories, event types and query tokens."""
        tables = self.items.vocabularies("items")
        if self.events.types is not None:
            tables["events.types"] = "events"
        if self.events.tokens is not None:
            tables["events.tokens"] = "query_tokens"
        return tables
