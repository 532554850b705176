"""The part of an evaluation that a pointwise loss asks for: each target is scored by itself, the positive ones ranked.

Enters: histories with their targets, and the fitted regression. Leaves: columns of the evaluation's one table, and from
these the ``pointwise`` part of metrics.json. Surprising choice: targets that are negative by ``data.label`` have no
rank, because nobody wants them recommended; their row holds nulls there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from distft.data.collate import Side
from distft.data.encode import Encoder
from distft.data.ragged import take
from distft.data.shards import Targets
from distft.evaluate.pointwise import summarise_labels, summarise_values
from distft.evaluate.regression import build, fit, score_of_everybody
from distft.job import Job
from distft.ranking import Ranker
from distft.schema import Histories
from distft.storage import Storage

Weights = Mapping[str, NDArray[np.float32]]
Rank = Callable[[Histories, Targets], pa.Table]

SCORE = "score_"
VALUE = "target_value"


def fitted(job: Job, dataset: Storage) -> Weights | None:
    """The weights of the regression that the model of a pointwise job must beat; None where there is none."""
    if job.loss.judges is None or job.model.kind == "linear":
        return None
    return {name: tensor.numpy() for name, tensor in fit(job, dataset).items()}


class Judge:
    """Scores targets by a job's model and by the regression, if there is one."""

    def __init__(
        self, job: Job, dataset: Storage, encoder: Encoder, ranker: Ranker, regression: Weights | None
    ) -> None:
        self.labels = job.loss.judges == "labels"
        self.rankers = {"model": ranker}
        if regression is not None:
            model = build(job, encoder)
            model.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in regression.items()})
            side = Side.of(encoder, dataset)
            self.rankers["regression"] = Ranker(model, job.model.max_history, encoder, side)

    def table(self, histories: Histories, targets: Targets, rank: Rank) -> pa.Table:
        """What ``rank`` gives for the targets that are to be ranked, nulls for the others, and columns of scores."""
        wanted = targets.value > 0.5 if self.labels else np.ones(len(histories), np.bool_)
        rows = np.flatnonzero(wanted)
        ranked = rank(take(histories, rows), Targets(*(column[rows] for column in vars(targets).values())))
        table = ranked.take(pa.array(np.cumsum(wanted) - 1, mask=~wanted))
        for name, ranker in self.rankers.items():
            table = table.append_column(SCORE + name, pa.array(ranker.target_scores(histories, targets.item)))
        return table.append_column(VALUE, pa.array(targets.value.astype(np.float64)))


def split_judged(job: Job, dataset: Storage, table: pa.Table) -> tuple[dict[str, Any], pa.Table]:
    """(The pointwise part of metrics.json, the rows of the table that were ranked)."""
    names = [name for name in table.column_names if name.startswith(SCORE)]
    scores = {name.removeprefix(SCORE): table[name].to_numpy() for name in names}
    value_N = table[VALUE].to_numpy()
    scores["majority"] = np.full(len(value_N), score_of_everybody(job, dataset))
    if job.loss.judges == "labels":
        part = summarise_labels(scores, value_N, job.seed)
    else:
        majority = scores.pop("majority")
        predicted = {name: np.asarray(job.loss.values(score)) for name, score in scores.items()}
        part = summarise_values({**predicted, "majority": majority}, value_N, job.seed)
    ranked = table.filter(pc.is_valid(table["rank_model"]))
    return part, ranked.drop_columns([*names, VALUE])
