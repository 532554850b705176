"""What a model must beat: the popularity list, the recently seen list, and where a shop is made up its oracle.

Beside these there is ``cooccurrence``, which has to be trained.

Each baseline is a score function over the same catalogue, under the same exclusion rule and the same tie rule as
the model, so that their ranks compare.

Shape legend: B histories, N items, C items of a chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distft.data.encode import Encoder
from distft.data.sources.base import Oracle
from distft.schema import NUM_RESERVED, Histories
from distft.topk import ScoreChunk

FAINT = 1e-20
"""Popularity counts for so little where something else is known, and still orders what is known alike."""


def popularity(encoder: Encoder, histories: Histories) -> ScoreChunk:
    """Every history gets the items in order of their training count."""
    score_N = torch.from_numpy(encoder.counts.astype(np.float32))
    return lambda start, end: score_N[start:end].repeat(len(histories), 1)


def recently_seen(encoder: Encoder, histories: Histories) -> ScoreChunk:
    """The history's own items, the latest first, then the popular ones."""
    row_E = np.repeat(np.arange(len(histories)), histories.lengths)
    # Written in time order, each item is left with its latest place.
    place_E = np.arange(len(row_E)) - histories.offsets[:-1][row_E] + 1
    return above_popularity(encoder, len(histories), row_E, histories.item_row, place_E)


def above_popularity(
    encoder: Encoder,
    num_histories: int,
    row_P: NDArray[np.integer[Any]],
    item_P: NDArray[np.integer[Any]],
    value_P: NDArray[np.number[Any]],
) -> ScoreChunk:
    """Items ``item_P`` of the histories ``row_P`` by the values ``value_P`` > 0, before all others by popularity.

    Of several values of one item in one history the last one counts.
    """
    counts = encoder.counts.astype(np.float64)
    share_N = torch.from_numpy((FAINT * counts / max(1.0, counts.max(initial=0))).astype(np.float32))
    order_P = np.argsort(item_P, kind="stable")
    row_P, item_P, value_P = row_P[order_P], item_P[order_P], value_P[order_P].astype(np.float32)

    def scores(start: int, end: int) -> Tensor:
        s_BC = share_N[start:end].repeat(num_histories, 1).numpy()
        low, high = np.searchsorted(item_P, [max(start, NUM_RESERVED), end])
        s_BC[row_P[low:high], item_P[low:high] - start] = value_P[low:high]
        return torch.from_numpy(s_BC)

    return scores


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
