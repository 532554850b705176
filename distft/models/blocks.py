"""Building blocks that models share: the embedding of an event, of an item, and a transformer block.

Shape legend: B histories, L positions, N packed positions (or items), D width, Q query tokens, H heads, E width of a
head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distft.models.attention import attend
from distft.models.dropout import dropout
from distft.models.looked_up import LookedUp
from distft.models.packing import Packing
from distft.models.products import Linear
from distft.schema import NUM_GAP_BUCKETS, PAD, Batch, Catalog

INIT_STD = 0.02


class ItemEmbedding(nn.Module):
    """Vector of an item row: its own embedding plus those of its categories and numbers.

    Items of one category share what is learnt of it, so that rare items start from something. A one-hot-encoded
    feature goes through a matrix: that is the sum of the matrix's rows for an item's categories, and computed so.
    """

    codes_NK: Tensor
    numbers_NG: Tensor

    def __init__(self, catalog: Catalog, dim: int, features: bool) -> None:
        super().__init__()
        table = partial(nn.Embedding, padding_idx=PAD) if catalog.has_item_table else LookedUp
        self.items: nn.Module = table(catalog.num_items, dim)
        used = catalog.features if features else ()
        categories = [f for f in used if f.codes is not None]
        numbers = [f for f in used if f.values is not None]
        self.categories = nn.ModuleList(nn.Embedding(f.size, dim, padding_idx=PAD) for f in categories)
        self.category_names = [f.name for f in categories]
        self.numbers = nn.Linear(len(numbers), dim, bias=False) if numbers else None
        codes = [torch.as_tensor(f.codes, dtype=torch.int64).view(catalog.num_items, -1) for f in categories]
        self.num_codes = [c.shape[1] for c in codes]
        values = [torch.as_tensor(f.values, dtype=torch.float32) for f in numbers]
        # Not persistent: they are the encoder's, and a bundle carries them there.
        self.register_buffer("codes_NK", torch.cat(codes, 1) if codes else torch.zeros(0), persistent=False)
        self.register_buffer("numbers_NG", torch.stack(values, 1) if values else torch.zeros(0), persistent=False)

    def forward(self, items: Tensor) -> Tensor:
        """V [..., D] of item rows [...]."""
        v: Tensor = self.items(items)
        start = 0
        for table, size in zip(self.categories, self.num_codes, strict=True):
            # One code an item is looked up without an axis to sum over, which would cost a copy.
            codes = self.codes_NK[items, start] if size == 1 else self.codes_NK[items, start : start + size]
            v = v + (table(codes) if size == 1 else table(codes).sum(-2))
            start += size
        if self.numbers is not None:
            v = v + self.numbers(self.numbers_NG[items].to(v.dtype))
        return v

    def vocabularies(self, module: str) -> dict[str, str]:
        """Those of ``Model.vocabularies`` of this ``module`` of a model."""
        categories = zip(self.category_names, range(len(self.categories)), strict=True)
        return {f"{module}.items": "items"} | {f"{module}.categories.{k}": f"items.{name}" for name, k in categories}


class EventEmbedding(nn.Module):
    """What is known of an event beside its item: its type, the time since the one before, its query."""

    def __init__(self, catalog: Catalog, dim: int) -> None:
        super().__init__()
        self.types = nn.Embedding(catalog.num_events, dim, padding_idx=PAD) if catalog.num_events > 2 else None
        self.gaps = nn.Embedding(NUM_GAP_BUCKETS, dim) if catalog.has_clock else None
        self.tokens = nn.Embedding(catalog.num_query_tokens, dim, padding_idx=PAD) if catalog.num_query_tokens else None

    def forward(self, batch: Batch, v_BLD: Tensor) -> Tensor:
        """v_BLD plus the embeddings of the events."""
        if self.types is not None:
            v_BLD = v_BLD + self.types(batch.event_BL)
        if self.gaps is not None:
            v_BLD = v_BLD + self.gaps(batch.gap_BL)
        if self.tokens is not None:
            # Called also for a batch without queries: under ZeRO-3 every rank must touch the same parameters.
            q_BLQ = batch.query_BLQ if batch.query_BLQ.shape[2] else torch.zeros_like(batch.item_BL)[..., None]
            count_BL1 = (q_BLQ != PAD).sum(2, keepdim=True).clamp(min=1)
            v_BLD = v_BLD + self.tokens(q_BLQ).sum(2) / count_BL1
        return v_BLD


class Block(nn.Module):
    """Pre-norm transformer block: causal self-attention, then a feed-forward layer, each added to its input.

    ``gated``: SwiGLU instead of GELU (Shazeer, 2020, arXiv:2002.05202). ``rotary``: queries and keys are turned by
    their positions, so that their product knows how far they are apart (Su et al., 2021, arXiv:2104.09864).
    """

    def __init__(
        self, dim: int, num_heads: int, hidden: int, dropout: float, *, gated: bool = False, rotary: bool = False
    ) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.gated, self.rotary = num_heads, dropout, gated, rotary
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.up = Linear(dim, 2 * hidden if gated else hidden)
        self.down = Linear(hidden, dim)

    def forward(self, x_ND: Tensor, packing: Packing, _: Any = None) -> Tensor:
        """x_ND of the packed positions."""
        x_ND = x_ND + self._drop(self.out(self._attend(self.attention_norm(x_ND), packing)))
        hidden = self.up(self.feed_forward_norm(x_ND))
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=1)
            hidden = F.silu(gate) * hidden
        else:
            hidden = F.gelu(hidden)
        return x_ND + self._drop(self.down(self._drop(hidden)))

    def _attend(self, x_ND: Tensor, packing: Packing) -> Tensor:
        qkv_N3HE = self.qkv(x_ND).view(len(x_ND), 3, self.num_heads, x_ND.shape[1] // self.num_heads)
        if self.rotary:
            qk_N2HE, v_N1HE = qkv_N3HE.split([2, 1], dim=1)
            qkv_N3HE = torch.cat([rotated(qk_N2HE, packing.position_N), v_N1HE], 1)
        return attend(qkv_N3HE, packing, self.dropout if self.training else 0.0).flatten(1)

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


def rotated(x_NKHE: Tensor, position_N: Tensor) -> Tensor:
    """Each vector of width E turned by its position: pair i of its elements by position / 10000^(2i/E)."""
    half = x_NKHE.shape[-1] // 2
    rate_F = 10_000.0 ** (-torch.arange(half, device=position_N.device) / half)
    angle_NF = position_N[:, None] * rate_F
    cos, sin = (turn.to(x_NKHE.dtype)[:, None, None] for turn in (angle_NF.cos(), angle_NF.sin()))
    first, second = x_NKHE.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def init_normal(module: nn.Module, std: float = INIT_STD) -> None:
    """Normal weights with the given standard deviation, zero biases and zero PAD rows: for ``Module.apply``."""
    if isinstance(module, nn.Embedding | nn.Linear):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
