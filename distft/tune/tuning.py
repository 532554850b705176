"""``distft tune`` as a stage: a search, and what it leaves for a person and for the stages after it.

Enters: a job and the storage of its run. Leaves ``tune/``: ``trials.parquet`` with a row a trial, ``best.yaml``, the
whole job with the best values, and ``index.html``, under a manifest that says "running", then "finished". Surprising
choice: the folder is not replaced when the search has ended; it is what the search goes on from, with more trials too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from distft.data.parquet import write_table
from distft.errors import ArtefactError
from distft.job import Job
from distft.jobfile import dump_job, parse_job
from distft.searchspace import best_job
from distft.storage import MANIFEST, Manifest, Storage
from distft.tune.gain import gains
from distft.tune.leader import Warn
from distft.tune.ledger import Ledger, Trial
from distft.tune.search import num_trials
from distft.tune.sweep import SWEEP, metric, sweep

FOLDER, KIND = "tune", "tune"
BEST, TABLE, PAGE = "best.yaml", "trials.parquet", "index.html"
ShowJson = Callable[[Sequence[dict[str, Any]], int], None]
Page = Callable[[Mapping[str, Any], list[dict[str, Any]]], str]
"""(the manifest's summary, the trials as JSON) → HTML."""


def tune(  # noqa: PLR0913  whom it tells of what
    job: Job,
    root: Storage,
    made_from: dict[str, Any],
    *,
    anew: bool = False,
    show: ShowJson | None = None,
    warn: Warn | None = None,
    page: Page | None = None,
) -> dict[str, Any]:
    """Runs the search of a job, or what is left of it, and gives its summary; see ``sweep`` for what it raises.

    ``anew`` removes what is there, once it is sure that trials can run.
    """
    folder = root / FOLDER
    name = metric(job)

    def told(trials: Sequence[Trial], total: int) -> None:
        if show is not None:
            show(as_json(trials, name), total)

    begin = Manifest(KIND, {}, made_from, {"status": "running"})
    begun = partial(folder.write_json, MANIFEST, vars(begin))
    ledger = sweep(job, root, anew=anew, show=told, warn=warn, begin=begun)
    trials = [trial for _, trial in sorted(ledger.trials.items())]
    best = ledger.best()
    assert best is not None, "sweep raises where all failed"
    write_table(folder, TABLE, table(job, trials))
    folder.write_bytes(BEST, dump_job(best_job(job, best.values)).encode())
    found = summary(job, ledger, best)
    found["gain"] = gains(job, root, ledger.place(best), ledger.place(trials[0]), best, trials[0])
    if page is not None:
        folder.write_bytes(PAGE, page(found, as_json(trials, metric(job))).encode())
    folder.write_manifest(KIND, made_from, found)
    return found


def tuned(job: Job, root: Storage) -> Job:
    """The job that the search of this job found. Raises ArtefactError where it has not ended yet."""
    folder = root / FOLDER
    manifest = folder.manifest(KIND)
    if manifest is None or manifest.info.get("status") != "finished":
        raise ArtefactError(
            f"There is no finished search at {folder}",
            "one, because the job's stages list tune",
            "Run distft tune first, or take tune out of the job's stages to use the job's own values.",
        )
    folder.verify_file(BEST, manifest.files[BEST])
    found = parse_job(folder.read_bytes(BEST).decode(), f"{folder}/{BEST}")
    return found.model_copy(update={"storage": job.storage, "stages": job.stages})


def summary(job: Job, ledger: Ledger, best: Trial) -> dict[str, Any]:
    """What the manifest tells of a finished search."""
    trials = list(ledger.trials.values())
    swept = ledger.folder.read_json(SWEEP)
    train_s, valid_s = (sum(getattr(trial, name) for trial in trials) for name in ("train_s", "valid_s"))
    held_s = swept["seconds"] * swept["concurrent"]
    return {
        "status": "finished",
        "metric": metric(job),
        "num_trials": num_trials(job),
        "by_status": {status: sum(trial.status == status for trial in trials) for status in sorted(_statuses(trials))},
        "best": _told(best),
        "own": _told(ledger.trials[0]),
        "seconds": swept["seconds"],
        "concurrent": swept["concurrent"],
        "train_s": round(train_s, 1),
        "valid_s": round(valid_s, 1),
        "overhead_share": round(1 - min(1.0, (train_s + valid_s) / held_s), 4) if held_s else 0.0,
        "scale_learning_rate": job.tune.scale_learning_rate,
    }


def _statuses(trials: list[Trial]) -> set[str]:
    return {trial.status for trial in trials}


def _told(trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "values": trial.effective,
        "value": trial.best_value,
        "epoch": trial.best_epoch,
        "status": trial.status,
        "error": trial.error,
    }


def as_json(trials: Sequence[Trial], metric: str) -> list[dict[str, Any]]:
    """The trials for whoever shows them."""
    return [{**vars(trial), "epochs": trial.epochs, "metric": metric} for trial in trials]


def table(job: Job, trials: list[Trial]) -> pa.Table:
    """One row a trial: what it tried (a column a key; texts where they are not all numbers), and how it ended."""
    columns: dict[str, Any] = {
        "trial": [trial.number for trial in trials],
        "status": [trial.status for trial in trials],
        **{key: _column([trial.effective.get(key) for trial in trials]) for key in _keys(job)},
        metric(job): [trial.best_value for trial in trials],
        "best_epoch": [trial.best_epoch for trial in trials],
        "epochs": [trial.epochs for trial in trials],
        "steps": [trial.steps for trial in trials],
        "train_s": [trial.train_s for trial in trials],
        "valid_s": [trial.valid_s for trial in trials],
        "epoch_curve": [[epoch for epoch, _ in trial.curve] for trial in trials],
        "value_curve": [[value for _, value in trial.curve] for trial in trials],
        "error": [trial.error for trial in trials],
    }
    types = {metric(job): pa.float64(), "epoch_curve": pa.list_(pa.int64()), "value_curve": pa.list_(pa.float64())}
    return pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})


def _keys(job: Job) -> list[str]:
    more = ["train.learning_rate"] if job.tune.scale_learning_rate != "none" else []
    return list(dict.fromkeys([*job.tune.search, *more]))


def _column(values: list[Any]) -> list[Any]:
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if plain:
        whole = all(isinstance(value, int) for value in values)
        return values if whole else [float(value) for value in values]
    return [value if isinstance(value, str) else json.dumps(value) for value in values]
