"""Searches on a local Ray: what they leave, how they go on, and what they refuse."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from distft.errors import TrainingError, UsageError
from distft.job import Job
from distft.jobfile import load_job, parse_job
from distft.storage import Storage
from distft.tune.ledger import Ledger
from distft.tune.tuning import tune, tuned
from tests.train.datasets import circle_job, write_circle

# Ray warns of its own deprecated settings when it pickles them.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

RATE, BATCH = "train.learning_rate", "train.batch_size"
SEARCH = {RATE: {"loguniform": [1e-4, 1e-1]}, BATCH: {"choice": [8, 16, 32]}}


def searching(root: Path, train: dict[str, Any] | None = None, **section: Any) -> Job:
    """The small job with a search of seven trials, two at a time."""
    written = circle_job(root, **{"epochs": 4, "early_stopping": None, **(train or {})}).model_dump(
        mode="json", by_alias=True
    )
    tune_section = {"num_trials": 7, "max_concurrent": 2, "search": SEARCH, **section}
    return Job.model_validate({**written, "tune": tune_section})


@pytest.fixture(scope="module")
def searched(ray_session: Any, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job whose search has ended."""
    root = tmp_path_factory.mktemp("searched")
    write_circle(root)
    job = searching(root)
    tune(job, Storage(root), {"job": "abc"})
    return job


def ledger(root: object) -> Ledger:
    return Ledger(Storage(f"{root}/tune"), "ndcg@10")


def test_a_search_leaves_a_table_of_its_trials_and_the_job_with_the_best_values(searched: Job) -> None:
    folder = Storage(searched.storage) / "tune"
    info = folder.verified("tune").info
    trials = pq.read_table(folder.path / "trials.parquet").to_pylist()
    assert [trial["trial"] for trial in trials] == list(range(7))
    assert {trial["status"] for trial in trials} == {"finished", "ended early"}
    values = [trial["ndcg@10"] for trial in trials]
    assert max(values) == info["best"]["value"] > min(values)
    assert info["best"]["trial"] == values.index(max(values))
    assert (trials[0][RATE], trials[0][BATCH]) == (0.02, 20) and trials[0]["status"] == "finished"
    for trial in trials:
        assert trial["value_curve"] and max(trial["value_curve"]) == trial["ndcg@10"]
        assert trial["epochs"] == trial["epoch_curve"][-1] and trial["train_s"] > 0 and trial["valid_s"] > 0
    best = load_job(folder.path / "best.yaml")
    chosen = trials[info["best"]["trial"]]
    assert (best.train.learning_rate, best.train.batch_size) == (chosen[RATE], chosen[BATCH])
    assert tuned(searched, Storage(searched.storage)).train == best.train
    assert best.train.epochs == searched.train.epochs and "tune" not in best.stages
    kept = {path.parts[-3] for path in folder.path.glob("trials/*/checkpoints/*")}
    assert kept == {"0000", f"{info['best']['trial']:04d}"}, "others need no weights any more"


def test_each_trial_trained_with_its_values_and_told_what_its_journal_tells(searched: Job) -> None:
    for number, trial in ledger(searched.storage).trials.items():
        job = parse_job((Storage(searched.storage) / f"tune/trials/{trial.name}").read_bytes("job.yaml").decode())
        assert (job.train.learning_rate, job.train.batch_size) == (trial.values[RATE], trial.values[BATCH])
        assert trial.number == number and trial.curve[-1][0] <= 4


def test_more_trials_continue_an_interrupted_search_and_rerun_none(searched: Job, tmp_path: Path) -> None:
    """As after a kill: trial 5 has a first checkpoint and no end, trial 6 was never begun."""
    root = tmp_path / "run"
    shutil.copytree(searched.storage, root)
    before = ledger(root).trials
    for name in ("0006.json", "0006", "0005", "../manifest.json"):
        path = root / "tune/trials" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    ledger(root).write(before[5].__class__(5, before[5].values, before[5].effective))
    stamps = {path: path.stat().st_mtime_ns for path in root.glob("tune/trials/000[0-4]/metrics.jsonl")}
    shown: list[int] = []
    job = searching(root, num_trials=8)
    found = tune(job, Storage(root), {}, show=lambda trials, total: shown.append(len(trials)))
    after = ledger(root).trials
    assert found["num_trials"] == 8 and shown[0] == 6 and shown[-1] == 8
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    for number in range(7):
        assert after[number].values == before[number].values, "what a trial tries does not depend on the kill"
        assert after[number].curve == before[number].curve and after[number].status == before[number].status


def test_trials_that_fail_are_told_and_only_a_search_of_nothing_else_fails(ray_session: Any, tmp_path: Path) -> None:
    root = write_circle(tmp_path)
    train: dict[str, Any] = {"optimizer": "sgd", "epochs": 1}
    section = {"algorithm": "grid", "max_concurrent": 1}
    job = searching(tmp_path, train, search={RATE: {"choice": [0.02, 1e30]}}, **section)
    found = tune(job, root, {})
    assert found["by_status"] == {"failed": 1, "finished": 1} and found["best"]["trial"] == 0
    failed = ledger(tmp_path).trials[1]
    assert "loss of step" in failed.error and failed.best_value is None
    hopeless = searching(tmp_path, {**train, "learning_rate": 1e29}, search={RATE: {"choice": [1e30]}}, **section)
    with pytest.raises(TrainingError, match=r"All 2 trials failed; the first: .*loss of step"):
        tune(hopeless, root, {}, anew=True)


def test_what_cannot_run_is_refused_before_anything_is_written(ray_session: Any, tmp_path: Path) -> None:
    root = write_circle(tmp_path)
    with pytest.raises(UsageError, match=r"tune\.num_workers to 4|tune\.num_workers is 5"):
        tune(searching(tmp_path, num_workers=5), root, {})
    blind = write_circle(tmp_path / "blind", valid=False)
    with pytest.raises(UsageError, match=r"no validation targets, so no trial would report ndcg@10"):
        tune(searching(tmp_path / "blind"), blind, {})
    assert not (tmp_path / "tune").exists() and not (tmp_path / "blind/tune").exists()
