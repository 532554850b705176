"""A pointwise evaluation: every target scored, the positive ones ranked, the regression fitted beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from distft.data.collate import Side
from distft.data.encode import Encoder
from distft.data.shards import TargetReader, Targets
from distft.evaluate.judging import Judge, fitted, split_judged
from distft.evaluate.pointwise import auc
from distft.job import Job
from distft.ranking import Ranker
from distft.schema import Histories
from distft.storage import Storage
from tests.data import logs


def shop(folder: Path, loss: dict[str, Any], **data: Any) -> tuple[Job, Storage]:
    """A prepared shop of 12 goods, of which the higher half is always liked."""
    rng = np.random.default_rng(3)
    rows = []
    for user in range(60):
        for place, item in enumerate(rng.permutation(12)):
            value = 60 + item if item >= 6 else 10 + item
            rows.append([f"u{user}", f"i{item}", "buy", str(logs.START_S + 60 * place), "", f"{value}", "1"])
    logs.write_csv(folder / "log.csv", rows)
    split = {"by": "random", "valid_share": 0.2, "test_share": 0.2}
    job = logs.job(folder, target_events=["purchase"], split=split, **data)
    dataset, _ = logs.prepare_here(job, folder / "run")
    sections = {"model": {"kind": "mlp", "dim": 4, "hidden": [8], "max_history": 20}, "loss": loss}
    stopping = {"early_stopping": {"metric": "loss"}, "windows": "each"}
    return Job.model_validate({**job.model_dump(by_alias=True), **sections, "train": stopping}), dataset


LABELS = {"label": {"value_at_least": 50}}


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Job, Storage]:
    return shop(tmp_path, {"kind": "bce", "num_negatives": 0}, **LABELS)


def judged(job: Job, dataset: Storage) -> tuple[pa.Table, list[int]]:
    """The table of all test targets, and how many were ranked of each batch."""
    encoder = Encoder.load(dataset / "encoder")
    torch.manual_seed(0)
    ranker = Ranker(job.model.build(encoder.catalog()), 20, encoder, Side.of(encoder, dataset))
    judge = Judge(job, dataset, encoder, ranker, fitted(job, dataset))
    ranked: list[int] = []

    def rank(histories: Histories, targets: Targets) -> pa.Table:
        ranked.append(len(histories))
        return pa.table({"user_row": histories.user_row, "rank_model": targets.item.astype(np.int64)})

    reader = TargetReader(dataset, "test", batch_size=16)
    return pa.concat_tables([judge.table(histories, targets, rank) for histories, targets in reader]), ranked


def test_every_target_is_scored_and_the_positive_ones_are_ranked(labelled: tuple[Job, Storage]) -> None:
    job, dataset = labelled
    table, ranked = judged(job, dataset)
    values = np.concatenate([targets.value for _, targets in TargetReader(dataset, "test")])
    items = np.concatenate([targets.item for _, targets in TargetReader(dataset, "test")])
    assert table["target_value"].to_numpy().tolist() == values.tolist()
    assert sum(ranked) == values.sum() < len(values)
    expected = [int(item) if value else None for item, value in zip(items, values, strict=True)]
    assert table["rank_model"].to_pylist() == expected
    part, rest = split_judged(job, dataset, table)
    assert rest["rank_model"].to_pylist() == [rank for rank in expected if rank is not None]
    assert rest.column_names == ["user_row", "rank_model"]
    assert part["num_targets"] == len(values)
    assert part["model"]["auc"] == auc(table["score_model"].to_numpy(), values)
    assert part["baselines"]["majority"]["auc"] == 0.5


def test_the_regression_learns_what_a_sum_can_tell(labelled: tuple[Job, Storage]) -> None:
    job, dataset = labelled
    part, _ = split_judged(job, dataset, judged(job, dataset)[0])
    assert part["baselines"]["regression"]["auc"] > 0.99  # the item alone tells it here
    assert part["baselines"]["regression"]["accuracy"] > part["baselines"]["majority"]["accuracy"] + 0.2
    again = fitted(job, dataset)
    assert again is not None
    assert all(np.array_equal(values, again[name]) for name, values in (fitted(job, dataset) or {}).items())


def test_values_are_judged_by_their_errors(tmp_path: Path) -> None:
    job, dataset = shop(tmp_path, {"kind": "mse", "offset": 40.0})
    table, _ = judged(job, dataset)
    part, rest = split_judged(job, dataset, table)
    values = table["target_value"].to_numpy()
    error = table["score_model"].to_numpy() + 40 - values
    assert part["model"]["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert part["baselines"]["majority"]["rmse"] == pytest.approx(values.std(), rel=0.1)
    assert part["baselines"]["regression"]["rmse"] < part["model"]["rmse"]
    assert len(rest) == len(values)
