"""The worker's loop on a real dataset, in this process: learning, resuming, stopping, what it writes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distft.data.encode import Encoder
from distft.errors import UsageError
from distft.job import Job
from distft.models.weights import read_weights
from distft.storage import Storage
from distft.train import loop as loop_module
from distft.train.checkpoint import committed
from distft.train.engine import Engine
from distft.train.journal import TIMED_KEYS, read_lines
from distft.train.loop import Loop, TrainResult
from distft.train.validation import Validation, watched_metric
from tests.train.datasets import circle_job, write_circle
from tests.train.ranks import run_ranks

CPU = torch.device("cpu")


class Interruption(Exception):
    pass


def train(job: Job, root: Storage, reports: list[dict[str, Any]] | None = None) -> TrainResult:
    return Loop(job, root, "train", CPU, (reports if reports is not None else []).append).run()


def train_result(job: Job, root: Storage) -> TrainResult:
    return train(job, root)


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt ends before optimiser step ``step``."""
    real = loop_module.train_step

    def failing(engine: Any, batches: Any, empty: Any, number: int, rate: float) -> Any:
        if number == step:
            raise Interruption
        return real(engine, batches, empty, number, rate)

    monkeypatch.setattr(loop_module, "train_step", failing)


def last_weights(root: Storage) -> dict[str, torch.Tensor]:
    best = max((root / "train/checkpoints").list(), key=lambda name: int(name.split("/")[0].removeprefix("step-")))
    return read_weights(root / "train/checkpoints" / best.split("/")[0])


def test_learns_the_circle_and_writes_what_it_did(tmp_path: Path, one_rank: None) -> None:
    root, reports = write_circle(tmp_path), []
    result = train(circle_job(tmp_path, epochs=8, early_stopping={"patience": 8}), root, reports)
    assert result.best_metric is not None and result.best_metric > 0.95
    assert (result.epochs, result.steps, result.stopped_early) == (8, 32, False)
    best = json.loads((tmp_path / "train/best.json").read_text())
    assert best["metric"] == "ndcg@10" and best["value"] == result.best_metric and best["step"] == result.best_step
    assert set(read_weights(root / "train" / best["checkpoint"])) == set(last_weights(root))
    lines = list(read_lines(root / "train"))
    valid = [line for line in lines if line["kind"] == "valid"]
    assert [line["epoch"] for line in valid] == list(range(1, 9))
    assert valid[-1]["loss"] < valid[0]["loss"] and {"hr@1", "mrr@5", "recall@10", "map@10"} <= valid[0].keys()
    assert [report["step"] for report in reports] == [line["step"] for line in valid]
    assert Storage(reports[-1]["checkpoint_path"]).exists("manifest.json")


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_resumed_equals_undisturbed_bit_for_bit(
    stop: int, tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"checkpoint": {"every_steps": 2}, "decay": "cosine", "warmup_steps": 3}
    whole, cut = write_circle(tmp_path / "whole"), write_circle(tmp_path / "cut")
    train(circle_job(tmp_path / "whole", **settings), whole)
    with monkeypatch.context() as patch:
        interrupt_at(stop, patch)
        with pytest.raises(Interruption):
            train(circle_job(tmp_path / "cut", **settings), cut)
    train(circle_job(tmp_path / "cut", **settings), cut)
    expected, found = last_weights(whole), last_weights(cut)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    timeless = [
        [{k: v for k, v in line.items() if k not in TIMED_KEYS} for line in read_lines(root / "train")]
        for root in (whole, cut)
    ]
    assert timeless[0] == timeless[1]
    assert (whole / "train").read_bytes("best.json") == (cut / "train").read_bytes("best.json")


def test_the_speed_of_the_steps_leaves_out_the_validation(
    tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(validation: Validation, engine: Engine) -> dict[str, float]:
        time.sleep(1.5)
        return real(validation, engine)

    real = Validation.score
    monkeypatch.setattr(Validation, "score", slow)
    root = write_circle(tmp_path)
    train(circle_job(tmp_path, epochs=1), root)
    (line,) = [line for line in read_lines(root / "train") if line["kind"] == "train"]
    most_tokens = 64 * 10  # of an epoch: histories, events
    assert line["tokens_per_s"] > most_tokens, "the steps took less than a second"


def test_best_json_never_names_a_checkpoint_that_goes(
    tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, gone = write_circle(tmp_path), []

    def delete_tree(storage: Storage, below: str = "") -> None:
        best = root.read_json("train/best.json")["checkpoint"]
        assert f"checkpoints/{below}" != best
        gone.append(below)
        keep(storage, below)

    keep = Storage.delete_tree
    monkeypatch.setattr(Storage, "delete_tree", delete_tree)
    train(circle_job(tmp_path, epochs=8, checkpoint={"keep": 1}), root)
    assert len(gone) > 3, "every epoch is better than the one before: the best one before must go"


def test_a_damaged_checkpoint_is_told_in_the_metrics_and_its_best_is_sought_again(
    tmp_path: Path, one_rank: None
) -> None:
    """The second epoch is better: the first one's checkpoint stays as the one before, but only until it goes."""
    root = write_circle(tmp_path)
    rules = {"checkpoint": {"keep": 2, "every_steps": 3}, "early_stopping": {"patience": 9}}
    result = train(circle_job(tmp_path, **rules), root)
    assert result.best_step == 8 and committed(root / "train/checkpoints") == ["step-8", "step-6"]
    damaged = next((tmp_path / "train/checkpoints/step-8").glob("weights*"))
    damaged.write_bytes(damaged.read_bytes()[::-1])
    again = train(circle_job(tmp_path, **rules), root)
    assert again == result
    (line,) = [line for line in read_lines(root / "train") if line["kind"] == "warning"]
    assert line["step"] == 6 and "step-8 is damaged" in line["message"] and damaged.name in line["message"]
    assert json.loads((tmp_path / "train/best.json").read_text())["step"] == 8


def test_best_json_does_not_name_what_a_damaged_run_lost(
    tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_circle(tmp_path)
    rules = {"checkpoint": {"keep": 2, "every_steps": 3}, "early_stopping": {"patience": 9}}
    train(circle_job(tmp_path, **rules), root)
    next((tmp_path / "train/checkpoints/step-8").glob("state*")).unlink()
    interrupt_at(6, monkeypatch)
    with pytest.raises(Interruption):
        train(circle_job(tmp_path, **rules), root)
    assert not (root / "train").exists("best.json"), "that of step 4 went when step 8 was better"


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_every_stage_trains_and_validates_alike(stage: int, tmp_path: Path, one_rank: None) -> None:
    second = write_circle(tmp_path / "2")
    expected = train(circle_job(tmp_path / "2", model={"dropout": 0}, zero={"stage": 2}), second)
    other = write_circle(tmp_path / "other")
    found = train(circle_job(tmp_path / "other", model={"dropout": 0}, zero={"stage": stage}), other)
    assert found.best_metric == pytest.approx(expected.best_metric, abs=1e-4)


@pytest.mark.parametrize(
    "stage", [0, pytest.param(1, marks=pytest.mark.proof), pytest.param(2, marks=pytest.mark.proof), 3]
)
def test_recomputed_activations_change_nothing_bit_for_bit(stage: int, tmp_path: Path, one_rank: None) -> None:
    results = []
    for recompute in (False, True):
        root = write_circle(tmp_path / str(recompute))
        settings: dict[str, Any] = {"zero": {"stage": stage}, "epochs": 1, "activation_checkpointing": recompute}
        train(circle_job(tmp_path / str(recompute), model={"dropout": 0.3}, **settings), root)
        losses = [line["loss"] for line in read_lines(root / "train") if line["kind"] == "train"]
        results.append((losses, last_weights(root)))
    (losses, expected), (found_losses, found) = results
    assert found_losses == losses
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.proof
def test_two_workers_train_as_one(tmp_path: Path, one_rank: None) -> None:
    one, two = write_circle(tmp_path / "one"), write_circle(tmp_path / "two")
    # Few tokens a micro-batch: ranks then have unequal numbers of them, and the last batch of an epoch is short.
    # SGD, because Adam makes a direction of the rounding noise that is a key bias's whole gradient.
    settings: dict[str, Any] = {"model": {"dropout": 0}, "max_tokens_per_micro_batch": 24, "zero": {"stage": 3}}
    settings |= {"optimizer": "sgd", "learning_rate": 0.3}
    expected = train(circle_job(tmp_path / "one", **settings), one)
    ranks = run_ranks(2, train_result, circle_job(tmp_path / "two", **settings), two)
    assert ranks[0] == ranks[1]
    assert ranks[0].best_metric == pytest.approx(expected.best_metric, abs=1e-3)
    first, second = last_weights(one), last_weights(two)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=0, msg=name)


def test_raising_the_epochs_continues_and_a_finished_training_returns(tmp_path: Path, one_rank: None) -> None:
    root = write_circle(tmp_path)
    assert train(circle_job(tmp_path, epochs=1), root).steps == 4
    assert train(circle_job(tmp_path, epochs=1), root).steps == 4
    assert train(circle_job(tmp_path, epochs=2), root).steps == 8
    assert [line["epoch"] for line in read_lines(root / "train") if line["kind"] == "valid"] == [1, 2]


def test_stops_early_when_nothing_gets_better(tmp_path: Path, one_rank: None) -> None:
    root = write_circle(tmp_path)
    job = circle_job(tmp_path, epochs=9, learning_rate=1e-12, early_stopping={"metric": "loss", "patience": 2})
    result = train(job, root)
    assert result.stopped_early and result.epochs < 9
    again = train(job, root)
    assert (again.epochs, again.stopped_early) == (result.epochs, True)


def test_without_validation_targets_the_latest_is_best(tmp_path: Path, one_rank: None) -> None:
    root = write_circle(tmp_path, valid=False)
    result = train(circle_job(tmp_path), root)
    assert (result.best_metric, result.best_step) == (None, 8)
    assert json.loads((tmp_path / "train/best.json").read_text())["checkpoint"] == "checkpoints/step-8"


def test_a_training_watches_the_metric_of_its_job(tmp_path: Path) -> None:
    assert watched_metric(circle_job(tmp_path, early_stopping=None)) == "ndcg@10"
    assert watched_metric(circle_job(tmp_path, early_stopping={"metric": "hr@3"})) == "hr@3"


def test_another_metric_starts_the_search_for_the_best_anew(tmp_path: Path, one_rank: None) -> None:
    root = write_circle(tmp_path)
    rules = [{"metric": "ndcg@10", "patience": 9}, {"metric": "loss", "patience": 9}]
    train(circle_job(tmp_path, early_stopping=rules[0]), root)
    result = train(circle_job(tmp_path, epochs=3, early_stopping=rules[1]), root)
    best = json.loads((tmp_path / "train/best.json").read_text())
    assert (best["metric"], best["value"], best["step"]) == ("loss", result.best_metric, 12)


def test_baskets_are_refused_where_the_log_has_no_times(
    tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_circle(tmp_path)
    encoder = replace(Encoder.of_dataset(root / "dataset"), has_clock=False)
    monkeypatch.setattr(loop_module.Encoder, "of_dataset", lambda dataset: encoder)
    with pytest.raises(UsageError, match="the log has no times"):
        train(circle_job(tmp_path, baskets=True), root)
