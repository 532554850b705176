"""A user's past as bags: the mean vector of the items of each kind of event so far, of the words searched, and counts.

Enters: a Batch. Leaves: for every position the bags of all events up to it, side by side, then numbers: how many
events are in each bag, and its share of all. A bag holds the items of one event type; where events have labels, those
that were liked and those that were not are two more. What is known of the user is a vector beside the bags.

Surprising choice: where a batch asks for nothing but what comes after whole histories, as with ``train.windows: each``,
only the last bags of each are computed: one product instead of sums at every position.

Shape legend: B histories, L positions (l: L, or 1 where only the last is asked for), Q query tokens, P kinds of bags, S
bags in all, D width, K categories and G numbers of the user, N numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distft.schema import NO_LABEL, PAD, Batch, Catalog


class Bags(nn.Module):
    """The tables that bags are filled from: each kind of bag has its own vector of an item."""

    def __init__(self, catalog: Catalog, dim: int, max_history: int) -> None:
        super().__init__()
        self.num_items, self.num_events = catalog.num_items, catalog.num_events
        self.num_kinds = catalog.num_events - 1 + (2 if catalog.has_labels else 0)
        self.scale = 1 / math.log1p(max_history)
        self.items = nn.Embedding(self.num_kinds * catalog.num_items, dim)
        self.tokens = nn.Embedding(catalog.num_query_tokens, dim, padding_idx=PAD) if catalog.num_query_tokens else None
        self.users = Users(catalog, dim) if catalog.user_features else None
        self.num_bags = self.num_kinds + (self.tokens is not None) + (self.users is not None)
        self.num_numbers = 2 * self.num_kinds

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(m_BlSD, numbers_BlN): l is 1 where only what comes after the whole histories is asked for."""
        last = asks_for_last(batch)
        kind_BL = self._kinds(batch)
        kinds_P = torch.arange(self.num_kinds, device=kind_BL.device)
        there_BL = batch.event_BL != PAD
        w_BLP = ((kind_BL[..., None] == kinds_P) & there_BL[..., None]).to(self.items.weight.dtype)
        bags = [_means(w_BLP, self.items(kind_BL * self.num_items + batch.item_BL), last)]
        if self.tokens is not None:
            # Called also for a batch without queries: under ZeRO-3 every rank must touch the same parameters.
            q_BLQ = batch.query_BLQ if batch.query_BLQ.shape[2] else torch.zeros_like(batch.item_BL)[..., None]
            words_BL1 = (q_BLQ != PAD).sum(2, keepdim=True).to(w_BLP.dtype)
            q_BLD = self.tokens(q_BLQ).sum(2) / words_BL1.clamp(min=1)
            bags.append(_means((words_BL1 > 0).to(w_BLP.dtype), q_BLD, last))
        if self.users is not None:
            u_B11D = self.users(batch)[:, None, None]
            bags.append(u_B11D.expand(-1, bags[0].shape[1], -1, -1))
        count_BlP = w_BLP.sum(1, keepdim=True) if last else w_BLP.cumsum(1)
        share_BlP = (count_BlP + 1) / (count_BlP.sum(2, keepdim=True) + self.num_kinds)
        return torch.cat(bags, 2), torch.cat([count_BlP.log1p() * self.scale, 2 * share_BlP - 1], 2)

    def vocabularies(self, module: str) -> dict[str, str]:
        """Those of ``Model.vocabularies`` of this ``module`` of a model; ``items`` holds its own once for each kind."""
        tables = {f"{module}.items": "items"}
        if self.tokens is not None:
            tables[f"{module}.tokens"] = "query_tokens"
        if self.users is not None:
            names = enumerate(self.users.category_names)
            tables |= {f"{module}.users.categories.{k}": f"users.{name}" for k, name in names}
        return tables

    def _kinds(self, batch: Batch) -> Tensor:
        """The bag that each event falls into; that of padding means nothing."""
        kind_BL = (batch.event_BL - 1).clamp(min=0)
        if self.num_kinds < self.num_events:
            return kind_BL
        labelled_BL = self.num_events - 2 + batch.label_BL
        return torch.where(batch.label_BL == NO_LABEL, kind_BL, labelled_BL)


class Users(nn.Module):
    """What is known of a user as a vector: the sum of what its categories and its numbers give."""

    def __init__(self, catalog: Catalog, dim: int) -> None:
        super().__init__()
        self.category_names = [feature.name for feature in catalog.user_features if feature.size]
        sizes = [feature.size for feature in catalog.user_features if feature.size]
        num_numbers = len(catalog.user_features) - len(sizes)
        self.categories = nn.ModuleList(nn.Embedding(size, dim, padding_idx=PAD) for size in sizes)
        self.numbers = nn.Linear(num_numbers, dim, bias=False) if num_numbers else None

    def forward(self, batch: Batch) -> Tensor:
        """u_BD of the users of a batch."""
        parts = [table(batch.user_codes_BK[:, k]) for k, table in enumerate(self.categories)]
        if self.numbers is not None:
            parts.append(self.numbers(batch.user_numbers_BG.to(self.numbers.weight.dtype)))
        return torch.stack(parts).sum(0)


def asks_for_last(batch: Batch) -> bool:
    """True where there are targets, all of them after the last event of their history."""
    wanted_BL = batch.target_BL != PAD
    last_B1 = (batch.length_B - 1).clamp(min=0)[:, None]
    num_last = int(wanted_BL.gather(1, last_B1).sum())
    return num_last > 0 and num_last == int(wanted_BL.sum())


def _means(w_BLP: Tensor, v_BLD: Tensor, last: bool) -> Tensor:
    """m_BlPD: the mean of the vectors in each bag so far; 0 for an empty one."""
    if last:
        sum_B1PD = torch.bmm(w_BLP.transpose(1, 2), v_BLD)[:, None]
        return sum_B1PD / w_BLP.sum(1).clamp(min=1)[:, None, :, None]
    sum_BLPD = (w_BLP[..., None] * v_BLD[:, :, None]).cumsum(1)
    return sum_BLPD / w_BLP.cumsum(1).clamp(min=1)[..., None]
