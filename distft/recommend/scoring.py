"""Lists for many users at once: a bundle's model over a table of histories, without Ray and without HTTP.

Enters: rows of users and what they did. Leaves: rows of users and what to recommend to them. Histories are encoded by
the bundle's encoder and ranked by the evaluator's code, so that a user gets the list that the service would give.
Surprising choice: lists come from a scan even where the bundle has an index: in batches a scan is cheap, and exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from distft.data.histories import encoded
from distft.ranking import excluded_items
from distft.schema import NUM_RESERVED, PAD, ExcludeSeen
from distft.serve.predictor import Predictor
from distft.topk import ScoreChunk, top_k

BATCH_USERS = 256
"""Histories that are encoded and ranked together."""
SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string()),
        pa.field("item_id", pa.list_(pa.string())),
        pa.field("score", pa.list_(pa.float32())),
        pa.field("source", pa.string()),
    ]
)


class BatchScorer:
    """A predictor that answers tables. ``exclude_seen``: None is the rule that the model was evaluated with."""

    def __init__(
        self, predictor: Predictor, k: int, exclude_seen: ExcludeSeen | None = None, deny: Sequence[str] = ()
    ) -> None:
        self.predictor, self.k = predictor, k
        self.rule: ExcludeSeen = exclude_seen or predictor.job.evaluate.exclude_seen
        rows = predictor.encoder.item_rows(deny)
        self._denied = np.unique(rows[rows >= NUM_RESERVED]).astype(np.int64)
        self._ids = pa.array(predictor.encoder.item_ids, pa.string())

    def lists(self, users: pa.Table) -> pa.Table:
        """A row for each row of ``users``, in their order. Raises DataError for events that cannot be followed."""
        starts = range(0, len(users), BATCH_USERS)
        return pa.concat_tables([SCHEMA.empty_table(), *(self._batch(users.slice(i, BATCH_USERS)) for i in starts)])

    def _batch(self, users: pa.Table) -> pa.Table:
        encoder, ranker = self.predictor.encoder, self.predictor.ranker
        histories = encoded(users, encoder)
        excluded = excluded_items(histories, self.rule, encoder.target_codes)
        scores = _without(ranker.scores(histories), self._denied)
        scores_BK, rows_BK = top_k(scores, encoder.num_items, self.k, excluded, len(histories))
        rows, found_BK = rows_BK.numpy(), rows_BK.numpy() != PAD
        offsets = pa.array(np.concatenate([[0], found_BK.sum(1).cumsum()]).astype(np.int32))
        source = np.where(histories.lengths > 0, "model", "popularity")
        columns = [
            users["user_id"].combine_chunks().cast(pa.string()),
            pa.ListArray.from_arrays(offsets, self._ids.take(pa.array(rows[found_BK]))),
            pa.ListArray.from_arrays(offsets, pa.array(scores_BK.numpy()[found_BK], pa.float32())),
            pa.array(source, pa.string()),
        ]
        return pa.table(columns, schema=SCHEMA)


def _without(scores: ScoreChunk, denied: NDArray[np.int64]) -> ScoreChunk:
    """The scores with -inf for denied item rows."""
    if not len(denied):
        return scores

    def kept(start: int, end: int) -> Tensor:
        here = denied[(denied >= start) & (denied < end)] - start
        s_BC = scores(start, end)
        s_BC[:, here] = -np.inf
        return s_BC

    return kept
