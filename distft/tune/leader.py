"""Leads a search: which trial is next, what it may know, whether it goes on, how it ended.

Enters: a job, the ledger of its search, and a plan. Leaves: the ledger, ahead of every answer. Surprising choice: it
knows no Ray. What a trial tries and when it ends are functions of the trials that had ended when it began
(``search.py``, ``halving.py``), so a search that is killed goes on as if nothing had been.

See docs/decisions/0022-repeatable-searches.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distft.errors import TrainingError
from distft.job import Job
from distft.searchspace import effective
from distft.tune.halving import ends_at
from distft.tune.ledger import Ledger, Trial
from distft.tune.search import Told, suggest

Show = Callable[[Sequence[Trial], int], None]
"""Called with all trials so far, and how many there will be, whenever one of them has come further."""
Warn = Callable[[str], None]
"""Called with a sentence about what went wrong, and was got over."""


@dataclass(frozen=True)
class Plan:
    """How a search runs: ``lag`` is what makes it the same again, so it is decided once and written down.

    A trial may begin when all of those ``lag`` or more before it have ended, and knows of them alone.
    """

    num_trials: int
    concurrent: int
    lag: int
    use_gpu: bool


class Leader:
    """The state of a search in the process that leads it: which trial is next, and how the open ones stand."""

    def __init__(self, job: Job, ledger: Ledger, plan: Plan, show: Show, warn: Warn) -> None:
        self.job, self.ledger, self.plan, self._show, self.warn = job, ledger, plan, show, warn
        self._epochs = job.tune.epochs or job.train.epochs
        self._handed_out: set[int] = set()
        self._num_ended = 0
        self.numbers: dict[str, int] = {}
        """Ray Tune's id of a trial → its number."""

    def begin(self) -> bool:
        """Ends what is only to be noted; True if trials are left to run, which then may be handed out."""
        self._handed_out.clear()
        self.numbers.clear()
        self._judge_from(0)
        self._tell()
        self._num_ended = self._ended()
        return self._num_ended < self.plan.num_trials

    def check_progress(self) -> None:
        """Raises TrainingError if no trial has ended since ``begin``: Ray Tune has given up, and would again."""
        if self._ended() == self._num_ended:
            raise TrainingError(
                f"Ray Tune ended its run after {self._num_ended} of {self.plan.num_trials} trials",
                "",
                "See its messages above and the logs of Ray; the same command goes on.",
            )

    def _ended(self) -> int:
        return sum(not trial.is_open for trial in self.ledger.trials.values())

    @property
    def all_begun(self) -> bool:
        """True once no trial is left to be started."""
        waiting = [number for number, one in self.ledger.trials.items() if one.is_open]
        return len(self.ledger.trials) >= self.plan.num_trials and self._handed_out.issuperset(waiting)

    def next_trial(self) -> Trial | None:
        """The trial to be started now: one that was interrupted, or the next one, if it may begin yet."""
        trials = self.ledger.trials
        running = [number for number in self._handed_out if trials[number].is_open]
        if len(running) >= self.plan.concurrent:
            return None
        waiting = [number for number, one in sorted(trials.items()) if one.is_open and number not in self._handed_out]
        number = waiting[0] if waiting else len(trials)
        if number >= self.plan.num_trials:
            return None
        if number not in trials:
            known = self._known(number)
            if known is None:
                return None
            values = suggest(self.job, number, [_told(trial) for trial in known], self.ledger.lower)
            self.ledger.write(Trial(number, values, effective(self.job, values)))
        self._handed_out.add(number)
        self._tell()
        return trials[number]

    def _known(self, number: int) -> list[Trial] | None:
        """The trials that trial ``number`` may know of; None while one of those that must have ended is running."""
        earlier = [self.ledger.trials[other] for other in range(number)]
        ended = earlier[: max(0, number - self.plan.lag + 1)]
        if any(trial.is_open for trial in ended):
            return None
        # Of the others it is known what they try, whether or not they have ended by now.
        return [*ended, *(replace(trial, status="running", curve=()) for trial in earlier[len(ended) :])]

    def reported(self, number: int, epoch: int) -> bool:
        """Notes a validation of a trial; False if the trial ends with it."""
        if self.ledger.trials[number].is_open:
            self.ledger.trials[number] = self.ledger.judged(number, epoch)
            self._judge_from(number)
        self._tell()
        return self.ledger.trials[number].is_open

    def _judge_from(self, first: int) -> None:
        """Judges a trial that has come further, and then those that may have waited for it."""
        for number in sorted(self.ledger.trials):
            if number >= first:
                self._judge(self.ledger.trials[number])

    def _judge(self, trial: Trial) -> None:
        """Notes that a trial ended at the first rung where it was behind; all before it must have come there, or ended.

        One that has gone on meanwhile, even to its last epoch, is cut back to that rung.
        """
        rule = self.job.tune.asha
        if rule is None or trial.number == 0 or trial.status in ("ended early", "failed"):
            return
        peers = [self.ledger.trials[other] for other in range(trial.number)]
        known = min((peer.epochs for peer in peers if peer.is_open), default=sys.maxsize)
        curves, epochs = [peer.curve for peer in peers], min(known + 1, self._epochs)
        last = ends_at(trial.curve, curves, rule, epochs, self.ledger.lower)
        if last is not None:
            self.ledger.write(replace(self.ledger.judged(trial.number, last), status="ended early"))

    def ended(self, number: int, error: str = "") -> None:
        """Notes that a trial has ended by itself, or how long it took where it was ended."""
        trial = self.ledger.trials[number]
        if trial.is_open:
            status: Any = "failed" if error else "finished"
            trial = self.ledger.judged(number, sys.maxsize)
            self.ledger.write(
                replace(trial, status=status, error=error, best_value=None if error else trial.best_value)
            )
            self._judge_from(number)
        else:
            whole = self.ledger.judged(number, sys.maxsize)
            self.ledger.write(replace(trial, train_s=whole.train_s, valid_s=whole.valid_s))
        self.drop_checkpoints(number)
        self._tell()

    def drop_checkpoints(self, ending: int | None = None) -> None:
        """Removes the weights of trials that ended and are neither the best nor the job's own.

        Those of ``ending``, whose process may still be at work on them, go with the next one's.
        """
        best = self.ledger.best()
        kept = {0, ending, best.number if best else 0}
        for number, trial in self.ledger.trials.items():
            if not trial.is_open and number not in kept:
                self.ledger.place(trial).delete_tree("checkpoints")

    def _tell(self) -> None:
        self._show([trial for _, trial in sorted(self.ledger.trials.items())], self.plan.num_trials)


def _told(trial: Trial) -> Told:
    return Told(
        trial.values,
        None if trial.status == "failed" else trial.curve,
        ended=not trial.is_open,
        complete=trial.status == "finished",
    )
