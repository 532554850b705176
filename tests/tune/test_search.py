"""What a search suggests: within its space, the same again, and better where others were good."""

from __future__ import annotations

import math
from typing import Any

import pytest

from distft.job import Job
from distft.tune.search import NUM_RANDOM, Told, num_trials, suggest
from tests.train.datasets import circle_job

RATE, BATCH = "train.learning_rate", "train.batch_size"


def job_with(tmp_path, **tune: Any) -> Job:
    section = {"search": {RATE: {"loguniform": [1e-4, 1e-1]}, BATCH: {"choice": [8, 16, 32]}}, **tune}
    return Job.model_validate({**circle_job(tmp_path).model_dump(mode="json", by_alias=True), "tune": section})


def told(values: dict[str, Any], value: float, complete: bool = True) -> Told:
    return Told(values, [(1, value)], ended=True, complete=complete)


def simulated(job: Job, objective: Any, lower: bool = False) -> list[Told]:
    found: list[Told] = []
    for number in range(num_trials(job)):
        values = suggest(job, number, found, lower)
        found.append(told(values, objective(values)))
    return found


def near_a_hundredth(values: dict[str, Any]) -> float:
    return -abs(math.log10(values[RATE]) + 2) - 0.1 * (values[BATCH] != 16)


def test_the_first_trial_has_the_jobs_own_values(tmp_path):
    assert suggest(job_with(tmp_path), 0, [], lower=False) == {RATE: 0.02, BATCH: 20}


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_values_lie_in_the_space_and_come_again(tmp_path, algorithm):
    job = job_with(tmp_path, algorithm=algorithm, num_trials=12)
    once, again = (simulated(job, near_a_hundredth) for _ in range(2))
    assert once == again
    for one in once[1:]:
        assert 1e-4 <= one.values[RATE] <= 1e-1 and one.values[BATCH] in (8, 16, 32)
    assert len({one.values[RATE] for one in once}) == 12
    other = job.model_copy(update={"seed": 2})
    assert simulated(other, near_a_hundredth)[1].values != once[1].values


@pytest.mark.parametrize("lower", [False, True])
def test_tpe_finds_what_is_good_and_random_does_not_care(tmp_path, lower):
    sign = -1 if lower else 1
    means = {}
    for algorithm in ("tpe", "random"):
        job = job_with(tmp_path, algorithm=algorithm, num_trials=30)
        found = simulated(job, lambda values: sign * near_a_hundredth(values), lower)
        means[algorithm] = sum(near_a_hundredth(one.values) for one in found[NUM_RANDOM:]) / (30 - NUM_RANDOM)
    assert means["tpe"] > means["random"] + 0.1


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_no_values_are_tried_twice_while_others_are_left(tmp_path, algorithm):
    search = {RATE: {"choice": [1e-3, 1e-2, 1e-1]}, BATCH: {"choice": [8, 16, 32]}}
    found = simulated(job_with(tmp_path, algorithm=algorithm, num_trials=11, search=search), near_a_hundredth)
    tried = {tuple(one.values.values()) for one in found[1:10]}
    assert len(tried) == 9 and tuple(found[10].values.values()) in tried, "the last one has nothing left to try"


def test_choices_that_rise_are_an_order(tmp_path):
    """What is good at 512 is so at its neighbours; without an order the mean distance is 2.4 steps, not 1.9."""
    search = {BATCH: {"choice": [2**n for n in range(12)]}, "train.weight_decay": {"uniform": [0.0, 1.0]}}

    def steps_away(values: dict[str, Any]) -> float:
        return abs(math.log2(values[BATCH]) - 9)

    late: list[float] = []
    for seed in range(4):
        job = job_with(tmp_path, num_trials=30, search=search, seed=seed)
        found = simulated(job, lambda values: -steps_away(values))
        late += [steps_away(one.values) for one in found[15:]]
    assert sum(late) / len(late) < 2.1


def test_failed_running_and_foreign_trials_are_no_obstacle(tmp_path):
    job = job_with(tmp_path)
    known = [told({RATE: 3.0, BATCH: 7}, 0.1)]  # outside of the space, as the job's own values may be
    known += [told({RATE: 0.001 * n, BATCH: 8}, 0.1 * n, complete=n % 2 == 0) for n in range(1, 6)]
    known += [Told({RATE: 0.05, BATCH: 32}, None, ended=True, complete=False)]
    known += [Told({RATE: 0.04, BATCH: 16}, (), ended=False, complete=False)]
    assert set(suggest(job, len(known), known, lower=False)) == {RATE, BATCH}


def test_a_grid_is_every_combination_once_after_the_jobs_own_values(tmp_path):
    search = {RATE: {"choice": [0.01, 0.02]}, BATCH: {"choice": [10, 20, 40]}}
    job = job_with(tmp_path, algorithm="grid", search=search)
    grid = [suggest(job, number, [], lower=False) for number in range(num_trials(job))]
    assert num_trials(job) == 6 and grid[0] == {RATE: 0.02, BATCH: 20}
    assert {(one[RATE], one[BATCH]) for one in grid} == {(r, b) for r in (0.01, 0.02) for b in (10, 20, 40)}
    job = job_with(tmp_path, algorithm="grid", search={RATE: {"choice": [0.01]}})
    assert num_trials(job) == 2, "the job's own values are none of the grid's"


def test_a_choice_may_be_a_whole_section(tmp_path):
    kinds = [{"kind": "transformer", "dim": 16, "num_heads": 2}, {"kind": "hstu", "dim": 16, "num_heads": 2}]
    job = job_with(tmp_path, algorithm="random", search={"model": {"choice": kinds}})
    assert [suggest(job, number, [], lower=False)["model"] in kinds for number in (1, 2, 3)] == [True] * 3
