"""Whole trainings with a sharded table of items: resuming, other numbers of ranks, the best weights, the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distft.data.encode import Encoder
from distft.errors import ArtefactError
from distft.evaluate.metrics import ranking_metrics
from distft.export import export
from distft.job import Job
from distft.models.weights import read_weights
from distft.ranking import Ranker
from distft.serve.predictor import Predictor
from distft.storage import Storage
from distft.train import loop as loop_module
from distft.train.base import inherited
from distft.train.checkpoint import committed
from distft.train.journal import TIMED_KEYS, read_lines
from distft.train.loop import Loop, TrainResult
from tests.train.datasets import circle_job, write_circle
from tests.train.ranks import run_ranks

CPU = torch.device("cpu")
TABLE = "items.items.weight"
LOSS = {"kind": "sampled_softmax", "num_negatives": 6}


class Interruption(Exception):
    pass


def sharded_job(root: Path, rule: str = "adamw", loss: Any = LOSS, **train: Any) -> Job:
    values = circle_job(root, **train).model_dump(mode="json", by_alias=True)
    values["model"]["item_table"] = {"placement": "sharded", "optimizer": rule}
    return Job.model_validate(values | {"loss": loss})


def train(job: Job, root: Storage, stop: int = -1) -> TrainResult | None:
    """Trains, until before step ``stop`` if there is one; None if it was ended there."""
    real = loop_module.train_step

    def failing(engine: Any, batches: Any, empty: Any, number: int, rate: float) -> Any:
        if number == stop:
            raise Interruption
        return real(engine, batches, empty, number, rate)

    loop_module.train_step = failing
    try:
        return Loop(job, root, "train", CPU, lambda line: None).run()
    except Interruption:
        return None
    finally:
        loop_module.train_step = real


def newest(root: Storage) -> Storage:
    folder = root / "train/checkpoints"
    return folder / committed(folder)[0]


def told(root: Storage) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMED_KEYS} for line in read_lines(root / "train")]


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adamw"])
def test_learns_and_exports_an_ordinary_bundle(optimizer: str, tmp_path: Path, one_rank: None) -> None:
    root = write_circle(tmp_path)
    job = sharded_job(tmp_path, optimizer, epochs=8, early_stopping={"patience": 8}, clip_norm=5.0)
    result = train(job, root)
    assert result is not None and result.best_metric is not None and result.best_metric > 0.9
    best = root / "train" / root.read_json("train/best.json")["checkpoint"]
    weights = read_weights(best)
    assert weights[TABLE].shape == (14, 16) and not weights[TABLE][0].any()
    (root / "test").make()
    (root / "dataset" / "test").make()
    export(job, root, weights, None, {})
    assert torch.equal(read_weights(root / "bundle")[TABLE], weights[TABLE])
    predictor = Predictor.load(root / "bundle")
    ranks = validation_ranks(job, root, predictor.ranker)
    assert ranking_metrics(ranks, [10])["ndcg@10"] == pytest.approx(result.best_metric, abs=1e-6)


def validation_ranks(job: Job, root: Storage, ranker: Ranker) -> Any:
    import numpy as np

    from distft.data.shards import TargetReader

    found = [
        ranker.ranks(histories, targets.item.astype(np.int32), None)
        for histories, targets in TargetReader(root / "dataset", "valid", batch_size=16)
    ]
    return np.concatenate(found)


@pytest.mark.parametrize("stop", [3, 6])
def test_resumed_equals_undisturbed_bit_for_bit(stop: int, tmp_path: Path, one_rank: None) -> None:
    settings: dict[str, Any] = {"checkpoint": {"every_steps": 2}, "decay": "cosine", "warmup_steps": 3}
    calm, cut = write_circle(tmp_path / "calm"), write_circle(tmp_path / "cut")
    train(sharded_job(tmp_path / "calm", **settings), calm)
    assert train(sharded_job(tmp_path / "cut", **settings), cut, stop) is None
    assert train(sharded_job(tmp_path / "cut", **settings), cut) is not None
    assert told(cut) == told(calm)
    assert_equal_state(cut, calm)


def assert_equal_state(first: Storage, second: Storage, gap: float = 0.0) -> None:
    """Weights, and what optimiser state there is of the table, whole."""
    for one, two in zip(whole_state(first), whole_state(second), strict=True):
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(one[name], two[name], atol=gap, rtol=0, msg=name)


def whole_state(root: Storage) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    from safetensors.torch import load

    from distft.models.weights import read_state, table_files

    storage = newest(root)
    _, state = read_state(storage)
    rows: dict[str, torch.Tensor] = {}
    for file, first, step in table_files(state, "optimizer-table"):
        for name, values in load(storage.read_bytes(file)).items():
            rows.setdefault(name, torch.full((14, *values.shape[1:]), torch.nan))[first::step] = values
    assert rows and not any(values.isnan().any() for values in rows.values())
    return read_weights(storage), rows


def attempts(job: Job, root: Storage, stop: int) -> TrainResult | None:
    return train(job, root, stop)


SGD: dict[str, Any] = {"checkpoint": {"every_steps": 2}, "optimizer": "sgd", "learning_rate": 0.1, "clip_norm": 1.0}


@pytest.mark.parametrize(
    "stage", [2, pytest.param(3, marks=pytest.mark.proof), pytest.param(0, marks=pytest.mark.proof)]
)
def test_two_ranks_resume_bit_for_bit(stage: int, tmp_path: Path) -> None:
    calm, cut = write_circle(tmp_path / "calm"), write_circle(tmp_path / "cut")
    settings: dict[str, Any] = {**SGD, "optimizer": "adamw", "learning_rate": 0.02, "zero": {"stage": stage}}
    results = run_ranks(2, attempts, sharded_job(tmp_path / "calm", **settings), calm, -1)
    assert results[0] == results[1]
    for stop in (5, -1):
        run_ranks(2, attempts, sharded_job(tmp_path / "cut", **settings), cut, stop)
    assert told(cut) == told(calm)
    assert_equal_state(cut, calm)


@pytest.mark.proof
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adamw"])
def test_other_numbers_of_ranks_go_on_where_one_stopped(optimizer: str, tmp_path: Path, one_rank: None) -> None:
    """1, 3 and 2 ranks at ZeRO 2, 3 and 0 train one epoch after the other as one rank does alone."""
    calm, moved = write_circle(tmp_path / "calm"), write_circle(tmp_path / "moved")
    settings: dict[str, Any] = {**SGD, "epochs": 3, "momentum": 0.0}
    job = sharded_job(tmp_path / "calm", optimizer, **settings)
    job = job.model_copy(update={"model": job.model.model_copy(update={"dropout": 0.0})})
    train(job, calm)
    for num_ranks, stage, epochs in ((1, 2, 1), (3, 3, 2), (2, 0, 3)):
        section = job.train.model_copy(
            update={"epochs": epochs, "zero": job.train.zero.model_copy(update={"stage": stage})}
        )
        changed = job.model_copy(update={"train": section})
        if num_ranks == 1:
            train(changed, moved)
        else:
            run_ranks(num_ranks, attempts, changed, moved, -1)
    assert_equal_state(moved, calm, 1e-4)
    losses = [[line["loss"] for line in told(root) if line["kind"] == "train"] for root in (calm, moved)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_table_trained_otherwise_is_refused(tmp_path: Path, one_rank: None) -> None:
    root = write_circle(tmp_path)
    train(sharded_job(tmp_path, epochs=1), root)
    with pytest.raises(ArtefactError, match="trained with adamw"):
        train(sharded_job(tmp_path, "rowwise_adagrad", epochs=2), root)


def test_what_a_fine_tuning_inherits_is_held_whole(tmp_path: Path, one_rank: None) -> None:
    root = write_circle(tmp_path)
    job = sharded_job(tmp_path, epochs=1)
    train(job, root)
    (root / "dataset" / "test").make()
    export(job, root, read_weights(newest(root)), None, {})
    values = circle_job(tmp_path / "tuned").model_dump(mode="json", by_alias=True)
    values = {key: values[key] for key in ("name", "storage", "data")}
    tuning = Job.model_validate({**values, "stages": ["finetune"], "finetune": {"from": str(root / "bundle")}})
    taken = inherited(tuning)
    assert not taken.model.item_table.is_sharded and taken.loss == job.loss
    assert Encoder.load(root / "bundle/encoder").catalog().num_items == 14
