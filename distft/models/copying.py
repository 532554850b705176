"""Copying from the history: what a model adds to the scores of the items that a history itself holds.

Enters: states, and the events up to each. Leaves: one addition a (state, event), for the item of the event. A score
that is a product of two vectors cannot say "this very item again" of each of 10,000 items in 64 dimensions; people
who order what they have just viewed, or buy the same goods every month, need just that. After the copy mode of Gu et
al. (2016, arXiv:1603.06393) and the repeat mode of RepeatNet (Ren et al., 2019, arXiv:1812.02646), but inside of one
softmax: additions to the logits, not a mixture of two distributions, so that top-k and every loss stay what they are.
Surprising choice: the additions of an item's events are summed, and each event knows how many of the same type and
item came before it, so that the sum can become any function of the count.

Shape legend: N states, P pairs of a state and an event up to it, B histories, L positions, D width, T event types.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distft.models.base import OwnScores
from distft.models.elapsed import gap_codes, seconds_since_first
from distft.models.products import Linear
from distft.schema import NUM_GAP_BUCKETS, NUM_RESERVED, Batch, Catalog

EXACT_DISTANCES = 16
NUM_DISTANCES = EXACT_DISTANCES + 16
"""Codes of how many events back an event lies: one each at first, then four an octave."""
MAX_COUNT = 8
"""Earlier events of the same type and item that are told apart."""
EVENT_CODES = 128
"""More than there are event types: they are int8."""
GAIN = 20.0
"""An optimiser such as Adam moves a weight by about the learning rate a step, whatever its gradient is; the logit of
an item that is worth copying must move by some ten, not by the tenth that an embedding needs."""


class Copying(nn.Module):
    """Additions to the scores of a history's own items.

    For an event of type t, d events back, the n-th of its type with its item, e seconds ago: distance[t, last, d] +
    count[t, n] + elapsed[t, last, e] + gate[t] · x, where ``last`` tells whether the item has not occurred since.
    It begins as the list of the recently seen items, the strongest simple one: an item that was last seen d events
    ago has num_items / (1 + d) times the odds of one that was not. All else starts at 0.
    """

    def __init__(self, catalog: Catalog, dim: int) -> None:
        super().__init__()
        types = catalog.num_events
        self.distance = nn.Parameter(_recency(catalog) / GAIN)
        self.count = nn.Parameter(torch.zeros(types * MAX_COUNT))
        self.elapsed = nn.Parameter(torch.zeros(types * 2 * NUM_GAP_BUCKETS)) if catalog.has_clock else None
        self.gate = Linear(dim, types, bias=False)
        nn.init.zeros_(self.gate.weight)

    def forward(self, x_ND: Tensor, pairs: Pairs) -> Tensor:
        """bonus_P, fp32."""
        kind_P = 2 * pairs.event_P + pairs.last_P
        gate_NT = self.gate(x_ND)
        # In fp32 also where the weights are not: GAIN would show their rounding.
        table_P = self.distance.float().index_select(0, kind_P * NUM_DISTANCES + pairs.distance_P)
        table_P = table_P + self.count.float().index_select(0, pairs.event_P * MAX_COUNT + pairs.count_P)
        if self.elapsed is not None:
            table_P = table_P + self.elapsed.float().index_select(0, kind_P * NUM_GAP_BUCKETS + pairs.elapsed_P)
        gate_P = gate_NT.reshape(-1).index_select(0, pairs.state_P * gate_NT.shape[1] + pairs.event_P)
        bonus_P: Tensor = GAIN * table_P + gate_P.float()
        return bonus_P


class Pairs:
    """Every pair of a state and an event with a real item, up to the state's own; ascending in the state.

    There are as many as attention has weights of one head: 32-bit numbers, where they do not count rows.

    ``row_N``, ``position_N``: the history of each state, and its place there.
    """

    def __init__(self, batch: Batch, row_N: Tensor, position_N: Tensor) -> None:
        count_N = position_N + 1
        state_P = torch.repeat_interleave(torch.arange(len(row_N), device=row_N.device), count_N)
        first_N = count_N.cumsum(0) - count_N
        event_index_P = torch.arange(len(state_P), device=row_N.device) - first_N[state_P]
        length = batch.item_BL.shape[1]
        flat_P = row_N[state_P] * length + event_index_P
        item_P = batch.item_BL.reshape(-1)[flat_P]
        real_P = item_P >= NUM_RESERVED
        self.state_P, flat_P, self.item_P = state_P[real_P], flat_P[real_P], item_P[real_P]
        now_P = position_N[self.state_P]
        self.event_P = batch.event_BL.reshape(-1)[flat_P].int()
        self.distance_P = _distance_codes(length, row_N.device)[now_P - event_index_P[real_P]]
        count_BL, next_BL = _occurrences(batch)
        self.count_P = count_BL.view(-1)[flat_P].int()
        self.last_P = (next_BL.view(-1)[flat_P] > now_P).int()
        seconds_BL = seconds_since_first(batch.gap_BL)
        now_seconds_N = seconds_BL[row_N, position_N]
        seconds_P = now_seconds_N[self.state_P] - seconds_BL.view(-1)[flat_P]
        self.elapsed_P = gap_codes(seconds_P.float()).int()


def own_scores(copying: Copying, x_ND: Tensor, row_N: Tensor, position_N: Tensor, batch: Batch) -> OwnScores:
    """The additions of states ``x_ND``, which stand at ``position_N`` of the histories ``row_N``."""
    pairs = Pairs(batch, row_N, position_N)
    return OwnScores(pairs.state_P, pairs.item_P, copying(x_ND, pairs))


def _recency(catalog: Catalog) -> Tensor:
    """The initial additions by distance, flat [T, 2, NUM_DISTANCES]."""
    codes = torch.arange(NUM_DISTANCES)
    far = EXACT_DISTANCES * torch.exp2((codes - EXACT_DISTANCES) / 4)
    odds = catalog.num_items / (1 + torch.where(codes < EXACT_DISTANCES, codes, far))
    last = odds.log().clamp(min=0)
    return torch.stack([torch.zeros_like(last), last]).repeat(catalog.num_events, 1).flatten()


def _distance_codes(length: int, device: torch.device) -> Tensor:
    """The code of each distance below ``length``, int32."""
    distance = torch.arange(length, device=device)
    octaves = torch.log2((distance.clamp(min=1) / EXACT_DISTANCES).double()).clamp(min=0)
    far = EXACT_DISTANCES + (4 * octaves).floor().int()
    return torch.where(distance < EXACT_DISTANCES, distance.int(), far).clamp(max=NUM_DISTANCES - 1)


def _occurrences(batch: Batch) -> tuple[Tensor, Tensor]:
    """(count_BL, next_BL): earlier events of the same type and item, at most MAX_COUNT - 1; where the item is next.

    Both from one stable sort each, so that a long history costs no square of its length. ``next_BL`` is L where the
    item does not come again.
    """
    item_BL, length = batch.item_BL, batch.item_BL.shape[1]
    place_L = torch.arange(length, device=item_BL.device).expand_as(item_BL)
    sorted_BL, order_BL = torch.sort(item_BL * EVENT_CODES + batch.event_BL, dim=1, stable=True)
    begins_BL = torch.ones_like(sorted_BL, dtype=torch.bool)
    begins_BL[:, 1:] = sorted_BL[:, 1:] != sorted_BL[:, :-1]
    start_BL = torch.where(begins_BL, place_L, 0).cummax(1).values
    count_BL = torch.empty_like(item_BL).scatter_(1, order_BL, place_L - start_BL).clamp_(max=MAX_COUNT - 1)
    sorted_BL, order_BL = torch.sort(item_BL, dim=1, stable=True)
    following_BL = torch.full_like(item_BL, length)
    again_BL = sorted_BL[:, 1:] == sorted_BL[:, :-1]
    following_BL[:, :-1] = torch.where(again_BL, order_BL[:, 1:], length)
    return count_BL, torch.empty_like(item_BL).scatter_(1, order_BL, following_BL)
