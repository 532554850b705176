"""Runs a search from what is there to its last trial.

Enters: a job, the storage of its run with a dataset, on a Ray that is up. Leaves: the trainings of all trials and their
ledger, below ``tune/``. Surprising choice: how many trials run at a time decides how much each may know of the others,
so that is settled when a search starts, and written down.

See docs/decisions/0022-repeatable-searches.md and 0023-trials-in-their-own-process.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from distft.data.shards import TargetReader
from distft.errors import JobError, TrainingError, UsageError
from distft.job import Job
from distft.jobfile import schema
from distft.searchspace import own_values, search_mistakes, trial_job
from distft.storage import Storage
from distft.train.driver import check
from distft.train.room import num_fitting
from distft.train.validation import watched_metric
from distft.tune.leader import Leader, Plan, Show, Warn
from distft.tune.ledger import TRIALS, Ledger
from distft.tune.search import num_trials
from distft.tune.trials import run_trials

SWEEP = "sweep.json"


def check_search(job: Job) -> None:
    """Raises JobError for a search that tries what the job would refuse."""
    mistakes = [f"{'.'.join(map(str, path))}: {text}" for path, text in search_mistakes(job, schema())]
    if mistakes:
        raise JobError("\n".join(mistakes))


def sweep(
    job: Job,
    root: Storage,
    *,
    anew: bool = False,
    show: Show | None = None,
    warn: Warn | None = None,
    begin: Callable[[], None] | None = None,
) -> Ledger:
    """Runs what is left of the trials of ``job.tune`` and gives their ledger; ``begin`` is called once it can be run.

    Raises UsageError for trials that cannot run on this cluster, before any is started; TrainingError where all failed.
    """
    check_search(job)
    folder = root / "tune"
    plan = _plan(job, root, None if anew else folder)
    if anew:
        folder.delete_tree()
    (folder / TRIALS).make()
    if begin is not None:
        begin()
    written = {"lag": plan.lag, "seconds": _swept_s(folder), "concurrent": plan.concurrent}
    folder.write_json(SWEEP, written)
    ledger = Ledger(folder, metric(job))
    leader = Leader(job, ledger, plan, show or (lambda trials, total: None), warn or (lambda text: None))
    started_s = time.monotonic()
    try:
        while leader.begin():
            run_trials(job, root, leader)
            leader.check_progress()
        leader.drop_checkpoints()
    finally:
        folder.write_json(SWEEP, {**written, "seconds": round(written["seconds"] + time.monotonic() - started_s, 1)})
    if ledger.best() is None:
        raise TrainingError(
            f"All {len(ledger.trials)} trials failed; the first: {ledger.trials[0].error}",
            "one that trains",
            "Mend what it tells of, then give the same command with --force.",
        )
    return ledger


def metric(job: Job) -> str:
    """The validation metric that trials are compared by."""
    return watched_metric(trial_job(job, own_values(job)))


def _swept_s(folder: Storage) -> float:
    return float(folder.read_json(SWEEP)["seconds"]) if folder.exists(SWEEP) else 0.0


def _plan(job: Job, root: Storage, folder: Storage | None) -> Plan:
    own = trial_job(job, own_values(job))
    use_gpu = check(own, root, "tune.num_workers")
    if not TargetReader(root / "dataset", "valid").num_rows:
        raise UsageError(
            f"{root}/dataset has no validation targets, so no trial would report {metric(job)}",
            "some to compare trials by",
            "Choose a data.split that holds some out, and prepare anew.",
        )
    total = num_trials(job)
    room = num_fitting(own.scaling, use_gpu) // job.tune.num_workers
    concurrent = max(1, min(room, job.tune.max_concurrent or room, total))
    lag = concurrent + 1 if concurrent > 1 else 1
    if folder is not None and folder.exists(SWEEP):
        lag = int(folder.read_json(SWEEP)["lag"])
    return Plan(total, concurrent, lag, use_gpu)
