"""A model and a history in, ranked items out: one code for validation, evaluation, serving and batch scoring.

Enters: a model, or states and item vectors, with histories. Leaves: lists of items, or the places of targets.
Surprising choice: a target's own score is computed as one more product of the kind that scores the whole catalogue, and
not as a sum of its own, because only so it is that score to the last bit, and ties are ties.

Shape legend: B histories, D width, N items, C items of a chunk, K results.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from distft.data.collate import Side, history_batch
from distft.data.encode import Encoder
from distft.data.users import Users
from distft.item_vectors import ItemVectors, Precision
from distft.models.base import Model, OwnScores, last_states, states_once
from distft.models.products import times_transposed
from distft.models.threads import each
from distft.schema import NUM_RESERVED, Batch, ExcludeSeen, Histories
from distft.topk import ScoreChunk, target_ranks, top_k

BATCH_ROWS = 512
"""Histories that ``dot_ranks`` ranks at once."""

FEW_STATES = 2
"""So few are multiplied with many items by torch's usual product: three times as fast as oneDNN's."""

STORED_ROWS = 4096
"""Rows of stored vectors that are turned back into fp32 at once: for a cache, as they are read but once."""

DIAGONAL_ROWS = 256
"""Rows of the square products whose diagonals are the targets' own scores."""


def excluded_items(
    histories: Histories, rule: ExcludeSeen, target_codes: NDArray[np.int8]
) -> list[NDArray[np.int32]] | None:
    """Item rows that each history rules out: all that it holds, those of target events, or None for no rule."""
    if rule == "none":
        return None
    counts = histories.item_row >= NUM_RESERVED
    if rule == "targets":
        counts &= np.isin(histories.event, target_codes)
    # One sort of all (history, item) as numbers: a fifth of the time of one for each history.
    size = int(histories.item_row.max(initial=0)) + 1
    history = np.repeat(np.arange(len(histories)), histories.lengths)
    key = np.sort(history[counts] * size + histories.item_row[counts])
    key = key[np.diff(key, prepend=-1) > 0]
    bounds = np.searchsorted(key, np.arange(len(histories) + 1) * size).tolist()
    rows = (key % size).astype(np.int32)
    return [rows[low:high] for low, high in itertools.pairwise(bounds)]


class DotScores:
    """The score function of states ``x_BD`` and the vectors ``vectors_ND`` of all item rows: their product, and what
    the model adds to single items.
    """

    def __init__(self, x_BD: Tensor, vectors_ND: Tensor | ItemVectors, own: OwnScores | None = None) -> None:
        self.x_BD, self.vectors_ND, self.own = x_BD.contiguous(), vectors_ND, own

    def __call__(self, start: int, end: int) -> Tensor:
        """s_BC of the item rows start..end-1."""
        if isinstance(self.vectors_ND, ItemVectors):
            cuts = [*range(start, max(start + 1, end), STORED_ROWS), end]
            s_BC = torch.cat([self._products(low, high) for low, high in itertools.pairwise(cuts)], 1)
        else:
            s_BC = self._products(start, end)
        return s_BC if self.own is None else self.own.add_to(s_BC, start)

    def _products(self, start: int, end: int) -> Tensor:
        vectors_CD, few = self.vectors_ND[start:end], len(self.x_BD) <= FEW_STATES
        return functional.linear(self.x_BD, vectors_CD) if few else times_transposed(self.x_BD, vectors_CD)

    def own_items(self, row: int) -> NDArray[np.int64]:
        """Item rows to whose scores the model adds something in one history."""
        own = self.own
        return np.zeros(0, np.int64) if own is None else own.item_P[own.state_P == row].numpy()

    def of_items(self, row: int, item_N: Tensor) -> Tensor:
        """s_N: one history's scores of some item rows."""
        s_1N = functional.linear(self.x_BD[row : row + 1], self.vectors_ND[item_N])
        if self.own is None:
            return s_1N[0]
        here_P = self.own.state_P == row
        own = replace(
            self.own,
            state_P=self.own.state_P[here_P] - row,
            item_P=self.own.item_P[here_P],
            bonus_P=self.own.bonus_P[here_P],
        )
        return (s_1N + own.at(item_N[None]))[0]

    def of(self, item_B: Tensor) -> Tensor:
        """s_B: each history's score of one item row; the bits of a chunk wherever the library can."""
        parts = [slice(start, start + DIAGONAL_ROWS) for start in range(0, max(1, len(item_B)), DIAGONAL_ROWS)]
        products = [times_transposed(self.x_BD[part], self.vectors_ND[item_B[part]]) for part in parts]
        s_B = torch.cat([product.diagonal() for product in products])
        if self.own is not None:
            asked_P = self.own.item_P == item_B[self.own.state_P]
            s_B.index_add_(0, self.own.state_P[asked_P], self.own.bonus_P[asked_P].to(s_B.dtype))
        return s_B


def dot_ranks(
    x_BD: Tensor, vectors_ND: Tensor, target_B: Tensor, excluded: list[NDArray[np.int32]] | None = None
) -> Tensor:
    """rank_B of each history's target, from 1, for any number of histories; ``topk.MISS`` for a miss.

    Beside its arguments it holds one chunk of scores for each thread.
    """

    def ranks(start: int) -> Tensor:
        rows = slice(start, start + BATCH_ROWS)
        scores, out = DotScores(x_BD[rows], vectors_ND), None if excluded is None else excluded[rows]
        return ranks_by(scores, len(vectors_ND), target_B[rows], out)

    return torch.cat([target_B[:0], *each(ranks, range(0, len(x_BD), BATCH_ROWS))])


def ranks_by(scores: ScoreChunk, num_items: int, target_B: Tensor, excluded: list[NDArray[np.int32]] | None) -> Tensor:
    """``topk.target_ranks``, told the targets' own scores where the score function can tell them beforehand."""
    expected_B = scores.of(target_B.clamp(0, num_items - 1)) if isinstance(scores, DotScores) else None
    return target_ranks(scores, num_items, target_B, excluded, expected_B)


def item_scores(model: Model, x_BD: Tensor, batch: Batch, vectors_ND: Tensor | ItemVectors | None = None) -> ScoreChunk:
    """The score function of a model for the states ``x_BD`` after each history's last event.

    ``vectors_ND`` are those of all rows, if at hand.
    """
    if model.retrieval == "dot":
        if vectors_ND is None:
            vectors_ND = model.item_vectors(torch.arange(model.num_items, device=x_BD.device))
        row_B, position_B = torch.arange(len(x_BD), device=x_BD.device), (batch.length_B - 1).clamp(min=0)
        return DotScores(x_BD, vectors_ND, model.own_scores(x_BD, row_B, position_B, batch))

    row_B = torch.arange(len(x_BD), device=x_BD.device)

    def pairs(start: int, end: int) -> Tensor:
        items_BC = torch.arange(start, end, device=x_BD.device).expand(len(x_BD), -1)
        return model.pair_scores(x_BD, items_BC, batch, row_B)

    return pairs


def scores_of_items(
    model: Model, x_BD: Tensor, items_BK: Tensor, batch: Batch, vectors_ND: Tensor | ItemVectors | None = None
) -> Tensor:
    """s_BK: the scores of K items for the state after each history's last event.

    By ``vectors_ND`` where they are stored in fewer bytes, and are then not those that the model would compute.
    """
    row_B = torch.arange(len(x_BD), device=x_BD.device)
    own = model.own_scores(x_BD, row_B, (batch.length_B - 1).clamp(min=0), batch)
    if isinstance(vectors_ND, ItemVectors):
        v_BKD = vectors_ND[items_BK.reshape(-1)].view(*items_BK.shape, -1)
        s_BK = torch.einsum("bd,bkd->bk", x_BD, v_BKD)
    else:
        s_BK = model.pair_scores(x_BD, items_BK, batch, row_B)
    return s_BK if own is None else s_BK + own.at(items_BK)


def target_scores(model: Model, x_BD: Tensor, target_B: Tensor, batch: Batch) -> Tensor:
    """s_B: the score of one item for the state after each history's last event."""
    return scores_of_items(model, x_BD, target_B[:, None], batch)[:, 0]


@dataclass(frozen=True)
class Ranked:
    """Best items of each history: ``scores_BK`` and ``rows_BK``, best first; row PAD where a list ran out."""

    scores_BK: Tensor
    rows_BK: Tensor


@torch.inference_mode()
def _vectors(model: Model, item_vectors: Precision | ItemVectors) -> Tensor | ItemVectors | None:
    """The vectors of all item rows as a ranker takes them; None for a model that has none."""
    if model.retrieval != "dot" or isinstance(item_vectors, ItemVectors):
        return item_vectors if isinstance(item_vectors, ItemVectors) else None
    vectors_ND = model.item_vectors(torch.arange(model.num_items))
    return vectors_ND if item_vectors == "fp32" else ItemVectors.of(vectors_ND, item_vectors)


class Ranker:
    """A trained model in eval mode with the vectors of all its items computed once.

    A model knows nothing of a visitor without a history, whatever it was trained on: there the popularity list ranks,
    in the evaluation as in the service. ``side``: what is known of the users; without it nothing is. ``item_vectors``:
    those that were stored, or how precisely they are to be.
    """

    def __init__(
        self,
        model: Model,
        max_history: int,
        encoder: Encoder,
        side: Side | None = None,
        item_vectors: Precision | ItemVectors = "fp32",
    ) -> None:
        self.model = model.eval()
        self.side = side or Side.of(encoder, None)
        self.max_history = max_history
        self.has_clock = encoder.has_clock
        counts_N = np.asarray(encoder.counts, np.float64)
        self.popularity_N = torch.from_numpy((counts_N / max(1.0, counts_N.sum())).astype(np.float32))
        self.vectors_ND = _vectors(model, item_vectors)

    @torch.inference_mode()
    def scores(self, histories: Histories, users: Users | None = None) -> ScoreChunk:
        """The score function of these histories; an empty one gets each item's share of the training targets.

        ``users``: of their user rows, instead of those that the ranker knows.
        """
        side = self.side if users is None else replace(self.side, users=users)
        batch = history_batch(histories, self.max_history, self.has_clock, side)
        x_BD = last_states(states_once(self.model, batch), batch.length_B)
        scores, empty_B = item_scores(self.model, x_BD, batch, self.vectors_ND), batch.length_B == 0
        if not empty_B.any():
            return scores
        return lambda start, end: torch.where(empty_B[:, None], self.popularity_N[start:end], scores(start, end))

    @torch.inference_mode()
    def target_scores(self, histories: Histories, targets: NDArray[np.int32]) -> NDArray[np.float64]:
        """What the model itself says of each history's target, also where the history is empty."""
        batch = history_batch(histories, self.max_history, self.has_clock, self.side)
        x_BD = last_states(states_once(self.model, batch), batch.length_B)
        target_B1 = torch.from_numpy(targets.astype(np.int64))[:, None]
        return np.asarray(scores_of_items(self.model, x_BD, target_B1, batch, self.vectors_ND)[:, 0].double())

    @torch.inference_mode()
    def scores_of_items(self, histories: Histories, row_K: NDArray[np.int64], users: Users | None = None) -> Tensor:
        """s_BK: what the model itself says of the same K items after each history; ``users``: see ``scores``."""
        side = self.side if users is None else replace(self.side, users=users)
        batch = history_batch(histories, self.max_history, self.has_clock, side)
        x_BD = last_states(states_once(self.model, batch), batch.length_B)
        items_BK = torch.from_numpy(row_K).expand(len(x_BD), -1)
        return scores_of_items(self.model, x_BD, items_BK, batch, self.vectors_ND)

    @torch.inference_mode()
    def top_k(
        self, histories: Histories, k: int, excluded: list[NDArray[np.int32]] | None, users: Users | None = None
    ) -> Ranked:
        """The k best items of each history that are not excluded; ``users``: see ``scores``."""
        return Ranked(*top_k(self.scores(histories, users), self.model.num_items, k, excluded, len(histories)))

    @torch.inference_mode()
    def ranks(
        self, histories: Histories, targets: NDArray[np.int32], excluded: list[NDArray[np.int32]] | None
    ) -> NDArray[np.int64]:
        """Rank of each history's target, from 1; ``topk.MISS`` for a miss."""
        return self.ranks_and_top_k(histories, targets, 0, excluded)[0]

    @torch.inference_mode()
    def ranks_and_top_k(
        self, histories: Histories, targets: NDArray[np.int32], k: int, excluded: list[NDArray[np.int32]] | None
    ) -> tuple[NDArray[np.int64], Tensor]:
        """(The ranks of ``ranks``, rows_BK of ``top_k``), with the states computed once."""
        scores, target_B = self.scores(histories), torch.from_numpy(targets.astype(np.int64))
        rank_B = ranks_by(scores, self.model.num_items, target_B, excluded)
        rows_BK = top_k(scores, self.model.num_items, k, excluded, len(histories))[1] if k else target_B.new_zeros(0, 0)
        return np.asarray(rank_B.numpy(), np.int64), rows_BK
