"""What a model must beat: the popularity list, the recently seen list, and where a shop is made up its oracle.

Beside these there is ``cooccurrence``, which has to be trained.

Each baseline is a score function over the same catalogue, under the same exclusion rule and the same tie rule as
the model, so that their ranks compare.

Shape legend: B histories, N items, C items of a chunk.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distft.data.encode import Encoder
from distft.data.sources.base import Oracle
from distft.schema import NUM_RESERVED, Histories
from distft.topk import ScoreChunk

FAINT = 1e-20
"""What popularity counts where something else is known."""


def popularity(encoder: Encoder, histories: Histories) -> ScoreChunk:
    """Every history gets the items in order of their training count."""
    score_N = torch.from_numpy(encoder.counts.astype(np.float32))
    return lambda start, end: score_N[start:end].repeat(len(histories), 1)


def recently_seen(encoder: Encoder, histories: Histories) -> ScoreChunk:
    """The history's own items, the latest first, then the popular ones."""
    row_E = np.repeat(np.arange(len(histories)), histories.lengths)
    place_E = np.arange(len(row_E)) - histories.offsets[:-1][row_E] + 1
    # Within an item they stay in time order: written one after the other, each item is left with its latest place.
    order_E = np.argsort(histories.item_row, kind="stable")
    row_E, place_E, item_E = row_E[order_E], place_E[order_E], histories.item_row[order_E]
    share_N = faint_shares(encoder)

    def scores(start: int, end: int) -> Tensor:
        s_BC = share_N[start:end].repeat(len(histories), 1).numpy()
        low, high = np.searchsorted(item_E, [max(start, NUM_RESERVED), end])
        s_BC[row_E[low:high], item_E[low:high] - start] = place_E[low:high]
        return torch.from_numpy(s_BC)

    return scores


def faint_shares(encoder: Encoder) -> Tensor:
    """share_N of each item in the training target events, made so small that it only orders what is else alike."""
    counts_N = encoder.counts.astype(np.float64)
    return torch.from_numpy((FAINT * counts_N / max(1.0, counts_N.max(initial=0))).astype(np.float32))


def oracle_scores(oracle: Oracle, encoder: Encoder, histories: Histories) -> ScoreChunk:
    """What the shop's own parameters say, given the observed history."""
    item_ids = [str(item) for item in encoder.item_ids[NUM_RESERVED:]]
    score_BN = np.zeros((len(histories), encoder.num_items), np.float64)
    for index in range(len(histories)):
        score_BN[index, NUM_RESERVED:] = oracle.scores(encoder.decode(histories, index), item_ids)
    return _ordered(score_BN)


def _ordered(score_BN: NDArray[np.float64]) -> ScoreChunk:
    """Scores replaced by their place in ascending order: fp64 differences survive the fp32 of the ranking."""
    place_BN = np.empty(score_BN.shape, np.float32)
    for row, score_N in enumerate(score_BN):
        place_BN[row] = np.unique(score_N, return_inverse=True)[1]
    dense_BN = torch.from_numpy(place_BN)
    return lambda start, end: dense_BN[:, start:end].clone()
