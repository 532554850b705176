"""A model and a history in, ranked items out: one code for validation, evaluation, serving and batch scoring.

Shape legend: B histories, D width, N items, C items of a chunk, K results.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distft.data.collate import history_batch
from distft.data.encode import Encoder
from distft.models.base import Model, last_states
from distft.schema import NUM_RESERVED, Batch, Histories
from distft.topk import ScoreChunk, dot_scores, target_ranks, top_k

ExcludeSeen = Literal["all", "targets", "none"]


def excluded_items(
    histories: Histories, rule: ExcludeSeen, target_codes: NDArray[np.int8]
) -> list[NDArray[np.int32]] | None:
    """Item rows that each history rules out: all that it holds, those of target events, or None for no rule."""
    if rule == "none":
        return None
    counts = histories.item_row >= NUM_RESERVED
    if rule == "targets":
        counts &= np.isin(histories.event, target_codes)
    bounds = itertools.pairwise(histories.offsets)
    return [np.unique(histories.item_row[low:high][counts[low:high]]) for low, high in bounds]


def item_scores(model: Model, x_BD: Tensor, batch: Batch, vectors_ND: Tensor | None = None) -> ScoreChunk:
    """The score function of a model for the states ``x_BD`` after each history's last event.

    ``vectors_ND`` are those of all rows, if at hand.
    """
    if model.retrieval == "dot":
        if vectors_ND is None:
            vectors_ND = model.item_vectors(torch.arange(model.num_items, device=x_BD.device))
        scores = dot_scores(x_BD, vectors_ND)
        row_B, position_B = torch.arange(len(x_BD), device=x_BD.device), (batch.length_B - 1).clamp(min=0)
        own = model.own_scores(x_BD, row_B, position_B, batch)
        return scores if own is None else lambda start, end: own.add_to(scores(start, end), start)

    row_B = torch.arange(len(x_BD), device=x_BD.device)

    def pairs(start: int, end: int) -> Tensor:
        items_BC = torch.arange(start, end, device=x_BD.device).expand(len(x_BD), -1)
        return model.pair_scores(x_BD, items_BC, batch, row_B)

    return pairs


@dataclass(frozen=True)
class Ranked:
    """Best items of each history: ``scores_BK`` and ``rows_BK``, best first; row PAD where a list ran out."""

    scores_BK: Tensor
    rows_BK: Tensor


class Ranker:
    """A trained model in eval mode with the vectors of all its items computed once.

    A model knows nothing of a visitor without a history, whatever it was trained on: there the popularity list ranks,
    in the evaluation as in the service.
    """

    def __init__(self, model: Model, max_history: int, encoder: Encoder) -> None:
        self.model = model.eval()
        self.max_history = max_history
        self.has_clock = encoder.has_clock
        counts_N = np.asarray(encoder.counts, np.float64)
        self.popularity_N = torch.from_numpy((counts_N / max(1.0, counts_N.sum())).astype(np.float32))
        with torch.inference_mode():
            rows_N = torch.arange(model.num_items)
            self.vectors_ND = model.item_vectors(rows_N) if model.retrieval == "dot" else None

    @torch.inference_mode()
    def scores(self, histories: Histories) -> ScoreChunk:
        """The score function of these histories; an empty one gets each item's share of the training targets."""
        batch = history_batch(histories, self.max_history, self.has_clock)
        x_BD = last_states(self.model.states(batch), batch.length_B)
        scores, empty_B = item_scores(self.model, x_BD, batch, self.vectors_ND), batch.length_B == 0
        if not empty_B.any():
            return scores
        return lambda start, end: torch.where(empty_B[:, None], self.popularity_N[start:end], scores(start, end))

    @torch.inference_mode()
    def top_k(self, histories: Histories, k: int, excluded: list[NDArray[np.int32]] | None) -> Ranked:
        """The k best items of each history that are not excluded."""
        return Ranked(*top_k(self.scores(histories), self.model.num_items, k, excluded, len(histories)))

    @torch.inference_mode()
    def ranks(
        self, histories: Histories, targets: NDArray[np.int32], excluded: list[NDArray[np.int32]] | None
    ) -> NDArray[np.int64]:
        """Rank of each history's target, from 1; num_items + 1 for a miss."""
        target_B = torch.from_numpy(targets.astype(np.int64))
        rank_B = target_ranks(self.scores(histories), self.model.num_items, target_B, excluded)
        return np.asarray(rank_B.numpy(), np.int64)
