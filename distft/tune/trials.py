"""Has Ray Tune run the trials of a search.

Enters: a leader. Leaves: the trainings of its trials. Surprising choice: Ray Tune places the trials, starts them, keeps
their processes for the next one and stops them, and decides nothing.

See docs/decisions/0023-trials-in-their-own-process.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from ray import tune
from ray.train import UserCallback
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from distft.errors import DistftError
from distft.job import Job
from distft.searchspace import own_values, trial_job
from distft.storage import Storage
from distft.train.driver import EndedEarly, scratch_of, train_trial
from distft.tune.leader import Leader
from distft.tune.ledger import TRIALS
from distft.tune.watch import Watch, watched

THREAD_TIMEOUT_S = "120"
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one talks whatever it is told
}
"""Of the process that leads the search: no files of Ray's beside ours, and Ctrl-C ends it like everything else."""


def run_trials(job: Job, root: Storage, leader: Leader) -> None:
    """Runs trials until none is left, or Ray Tune gives up."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    own = trial_job(job, own_values(job))
    with scratch_of(root / "tune") as scratch, Watch(job.scaling.stall_timeout_s) as watch:
        system, path = scratch.filesystem()
        tune.run(
            tune.with_resources(
                _trainable(job, root, scratch, leader.plan.use_gpu), _resources(own, leader.plan.use_gpu)
            ),
            name="search",
            storage_path=path,
            storage_filesystem=None if scratch.is_local else system,
            search_alg=_Search(leader, watch),
            scheduler=_Judgement(leader),
            callbacks=[_Endings(leader, watch)],
            num_samples=leader.plan.num_trials,
            reuse_actors=job.tune.num_workers == 1,  # a run of Ray Train ends with the process that waits for it
            max_failures=job.scaling.max_failures,
            raise_on_failed_trial=False,
            verbose=0,
        )


def _resources(own: Job, use_gpu: bool) -> Any:
    scaling = own.scaling
    if scaling.num_workers == 1:
        return {"cpu": scaling.cpus_per_worker, **({"gpu": 1} if use_gpu else {})}
    return {"cpu": 0, "memory": 1}  # its workers take the rest; nothing at all is refused


def _trainable(job: Job, root: Storage, scratch: Storage, use_gpu: bool) -> Callable[[dict[str, Any]], None]:
    """The function that Ray Tune runs for every trial, in a process of its own that it keeps for the next one."""

    def trial(config: dict[str, Any]) -> None:
        # Read here when the next trial comes: a thread that was told to end may be writing a checkpoint.
        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = THREAD_TIMEOUT_S
        own = trial_job(job, config["values"])
        stage = f"tune/{TRIALS}/{config['name']}"
        alone = own.scaling.num_workers == 1  # else Ray Train's controller reports, and looks after the workers
        callbacks: list[UserCallback] = [] if alone else [TuneReportCallback()]
        try:
            with watched(config["signs"], own.scaling.stall_timeout_s) if alone else nullcontext():
                result = train_trial(own, root, stage, _report, use_gpu, (scratch / config["name"], callbacks))
        except DistftError as error:  # it would come again: told, not raised, so that Ray Tune starts nothing anew
            tune.report({"error": str(error)})
            return
        if result is None:
            raise SystemExit  # as Ray Tune ends a function, which waits for it

    return trial


def _report(metrics: Mapping[str, Any]) -> None:
    try:
        tune.report(dict(metrics))
    except SystemExit:  # Ray Tune's way of ending a function
        raise EndedEarly from None


class _Search(Searcher):
    """Hands trials to Ray Tune as they may begin."""

    def __init__(self, leader: Leader, watch: Watch) -> None:
        super().__init__()
        self._leader, self._watch = leader, watch

    def suggest(self, trial_id: str) -> Any:
        if self._leader.all_begun:  # fewer than Ray Tune was told, where a search goes on
            return self.FINISHED
        trial = self._leader.next_trial()
        if trial is None:
            return None
        self._leader.numbers[trial_id] = trial.number
        return {"name": trial.name, "values": trial.values, "signs": self._watch.key(trial.number)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __reduce__(self) -> Any:
        return (Searcher, ())


class _Judgement(FIFOScheduler):
    """Asks after every validation whether a trial goes on."""

    def __init__(self, leader: Leader) -> None:
        super().__init__()
        self._leader = leader

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "epoch" not in result:
            return str(self.CONTINUE)
        goes_on = self._leader.reported(self._leader.numbers[trial.trial_id], int(result["epoch"]))
        return str(self.CONTINUE if goes_on else self.STOP)

    def __reduce__(self) -> Any:
        return (FIFOScheduler, ())


class _Endings(tune.Callback):
    """Notes how every trial ended, and ends those that hang."""

    def __init__(self, leader: Leader, watch: Watch) -> None:
        self._leader, self._watch = leader, watch
        self._hung: dict[int, str] = {}

    def _number(self, trial: Any) -> int:
        return self._leader.numbers[trial.trial_id]

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        running = [self._number(trial) for trial in trials if trial.status == trial.RUNNING]
        for number, sentence in self._watch.look(running):
            self._hung[number] = sentence

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = self._number(trial)
        self._watch.forget(number)
        what = self._hung.pop(number, "") or f"Trial {number} failed: {_last_words(trial)}"
        self._leader.warn(f"{what}. It goes on from its latest checkpoint, in another process.")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, str((trial.last_result or {}).get("error", "")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, self._hung.get(self._number(trial)) or _last_words(trial))

    def _end(self, trial: Any, error: str) -> None:
        number = self._number(trial)
        self._watch.forget(number)
        self._leader.ended(number, error)

    def __reduce__(self) -> Any:
        return (tune.Callback, ())


def _last_words(trial: Any) -> str:
    """What Ray Tune wrote down of a trial that failed too often."""
    try:
        with open(trial.error_file, encoding="utf-8") as stream:
            lines = [line.strip() for line in stream if line.strip()]
    except (OSError, TypeError):
        lines = []
    return lines[-1] if lines else "its process ended without a word"
