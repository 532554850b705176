"""Which values a trial tries: a function of its number and of how earlier trials ended.

Enters: the search of a job, and the trials that had ended. Leaves: values. Surprising choice: no state. Optuna's study
is built anew for every trial from the same trials in the same order, with a seed of its own, so that a search that was
killed suggests what it would have suggested.

See docs/decisions/0022-repeatable-searches.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distft.job import Job
from distft.searchspace import Values, combinations, own_values
from distft.sections.tune import Candidates
from distft.tune.halving import Curve, best_of

if TYPE_CHECKING:
    import optuna

NUM_RANDOM = 6
"""Trials, with that of the job's own values, before the results of others guide a search: few, and not a corner."""

MAX_DRAWS = 30
"""After so many suggestions that have been tried already one is tried again."""


@dataclass(frozen=True)
class Told:
    """A trial that a suggestion may know of: its values, its curve so far (None: it failed), and whether it ended."""

    values: Values
    curve: Curve | None
    ended: bool
    complete: bool


def num_trials(job: Job) -> int:
    """How many trials a search has."""
    if job.tune.algorithm != "grid":
        return job.tune.num_trials
    return len(_grid(job))


def suggest(job: Job, number: int, known: Sequence[Told], lower: bool) -> Values:
    """The values of trial ``number``, from 0; ``known``: the trials that it may learn from, in their order.

    The first trial has the job's own values, so that every search tells what it brought.
    """
    if number == 0:
        return own_values(job)
    if job.tune.algorithm == "grid":
        return _grid(job)[number]
    return _optuna(job, number, known, lower)


def _grid(job: Job) -> list[Values]:
    own = own_values(job)
    return [own, *(values for values in combinations(job.tune.search) if values != own)]


def _optuna(job: Job, number: int, known: Sequence[Told], lower: bool) -> Values:
    """What Optuna suggests that no trial has tried: the same values would only give the same result again."""
    tried = [one.values for one in known]
    for draw in range(MAX_DRAWS):
        values = _asked(job, number, draw, known, lower)
        if values not in tried:
            break
    return values


def _asked(job: Job, number: int, draw: int, known: Sequence[Told], lower: bool) -> Values:
    import optuna

    drawn = job.seed if job.tune.seed is None else job.tune.seed
    seed = int(np.random.SeedSequence([drawn, number, *([draw] if draw else [])]).generate_state(1)[0])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {key: _distribution(candidates) for key, candidates in job.tune.search.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if job.tune.algorithm == "tpe" and number >= NUM_RANDOM:
            # Joint, since batch size and learning rate go together.
            sampler: Any = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=1, multivariate=True, constant_liar=True
            )
        else:
            sampler = optuna.samplers.RandomSampler(seed=seed)
        study = optuna.create_study(sampler=sampler, direction="minimize" if lower else "maximize")
        for one in known:
            trial = _frozen(one, job.tune.search, space, lower)
            if trial is not None:
                study.add_trial(trial)
        asked = study.ask(space)
    return {key: _value(candidates, asked.params[key]) for key, candidates in job.tune.search.items()}


def _distribution(candidates: Candidates) -> optuna.distributions.BaseDistribution:
    """A choice is by its place, which means something where the choices are numbers that rise."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if candidates.bounds is not None:
        return FloatDistribution(*candidates.bounds, log=candidates.loguniform is not None)
    choice = candidates.choice or ()
    if all(isinstance(value, int | float) for value in choice) and list(choice) == sorted(choice):
        return IntDistribution(0, len(choice) - 1)
    return CategoricalDistribution(range(len(choice)))


def _value(candidates: Candidates, found: Any) -> Any:
    return found if candidates.choice is None else candidates.choice[found]


def _frozen(
    told: Told, search: Mapping[str, Candidates], space: Mapping[str, Any], lower: bool
) -> optuna.trial.FrozenTrial | None:
    """A trial as Optuna knows it; None where its values are none of the search's, as the job's own may be.

    One that ended early or failed is a pruned one: Optuna ranks these behind those that went further.
    """
    from optuna.trial import TrialState, create_trial

    params: dict[str, Any] = {}
    for key, candidates in search.items():
        value = told.values[key]
        if candidates.choice is not None:
            if value not in candidates.choice:
                return None
            params[key] = candidates.choice.index(value)
        elif candidates.bounds is not None and not candidates.bounds[0] <= value <= candidates.bounds[1]:
            return None
        else:
            params[key] = value
    state, best = TrialState.PRUNED, best_of(told.curve or (), lower)
    if not told.ended:
        state = TrialState.RUNNING
    elif told.complete and best is not None:
        state = TrialState.COMPLETE
    return create_trial(
        state=state,
        value=best[1] if best is not None and state == TrialState.COMPLETE else None,
        params=params,
        distributions=dict(space),
        intermediate_values=dict(told.curve or ()) if state == TrialState.PRUNED else None,
    )
