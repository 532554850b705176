"""A causal transformer over the event sequence, after SASRec (Kang and McAuley, 2018, arXiv:1808.09781).

Enters: a Batch. Leaves: one state per event. Surprising choice: blocks are pre-norm, which trains at higher rates
than the paper's post-norm ones; with ``positions: rotary`` and ``feed_forward_kind: swiglu`` they are those of later
language models, which eSASRec (2025, arXiv:2508.06450) found to help here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from distft.models.blocks import Block
from distft.models.sequence import SequenceModel
from distft.schema import Catalog

if TYPE_CHECKING:
    from distft.models.transformer.config import Config


class Transformer(SequenceModel):
    """Self-attention over the latest ``max_history`` events."""

    def has_positions(self, config: Config) -> bool:
        """An embedding each, unless the blocks turn queries and keys by them."""
        return config.positions == "learnt"

    def new_block(self, config: Config, catalog: Catalog) -> nn.Module:
        """Attention and a feed-forward layer."""
        hidden = int(config.dim * config.feed_forward)
        gated, rotary = config.feed_forward_kind == "swiglu", config.positions == "rotary"
        return Block(config.dim, config.num_heads, hidden, config.dropout, gated=gated, rotary=rotary)
