"""The space of a search: what it may not try, and the jobs of its trials."""

from __future__ import annotations

import pytest

from distft.errors import JobError
from distft.jobfile import dump_job, load_job, parse_job
from distft.searchspace import best_job, effective, own_values, trial_job

JOB = "jobs/ml100k.yaml"
RATE, BATCH = "train.learning_rate", "train.batch_size"
OWN = [f"{RATE}=2.0e-3", f"{BATCH}=32"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("{}", "expected at least one key"),
        ("{train.learning_rat: {choice: [1.0]}}", "there is no such key; did you mean 'train.learning_rate'?"),
        ("{train.dropout: {choice: [0.1]}}", "there is no such key; did you mean 'model.dropout'?"),
        ("{train.batch_size: {choice: [64, 0]}}", "tune.search.train.batch_size.choice.1: 0: expected at least 1."),
        ("{train.batch_size: {uniform: [1, 64]}}", "expected a whole number. A range is of numbers: list the values"),
        ("{train.learning_rate: {loguniform: [0, 1]}}", "expected more than 0"),
        ("{train.learning_rate: {uniform: [1, 0.1]}}", "the lower one first"),
        ("{train.learning_rate: {uniform: [0.1, 1], choice: [1.0]}}", "expected exactly one of"),
        ("{train.learning_rate: {choice: [1.0, 1.0]}}", "expected each value once"),
        ("{train.epochs: {choice: [1, 2]}}", "set tune.epochs"),
        ("{data.split: {choice: [{by: time}]}}", "all trials read the one dataset"),
        ("{serve.min_replicas: {choice: [1]}}", "only keys of model, loss, train"),
        ("{model.kind: {choice: [hstu]}}", "search the section, model: {choice:"),
        ("{model: {choice: [{kind: hstuu}]}}", "Did you mean 'hstu'?"),
        ("{model.num_heads: {choice: [2, 3]}}", "expected a divisor of dim (64), 3 is none."),
    ],
)
def test_a_search_that_cannot_be_is_refused_with_its_place(override, message):
    with pytest.raises(JobError) as caught:
        load_job(JOB, [f"tune.search={override}"])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune.metric=auc"], "tune.metric: 'auc': with the loss softmax validation computes"),
        (["tune.algorithm=grid"], "a grid has no range"),
        (
            ["tune.scale_learning_rate=sqrt", "tune.search={train.weight_decay: {choice: [0.0]}}"],
            "search train.batch_s",
        ),
    ],
)
def test_keys_of_the_section_must_go_together(overrides, message):
    with pytest.raises(JobError, match=message):
        load_job(JOB, overrides)


def test_an_override_reaches_into_the_search_and_wins():
    job = load_job(JOB, ["tune.search.train.learning_rate={choice: [0.5]}"])
    assert job.tune.search["train.learning_rate"].choice == (0.5,)
    nested = load_job(
        JOB, ["tune.search={train.batch_size: {choice: [1]}}", "tune.search.train.batch_size={choice: [2]}"]
    )
    assert nested.tune.search["train.batch_size"].choice == (2,)


def test_a_written_job_reads_back_as_it_was():
    job = load_job(JOB)
    assert parse_job(dump_job(job)) == job


def test_the_rate_follows_the_batch_size_by_the_rule():
    values = {RATE: 0.002, BATCH: 128}  # four times the job's own 32
    rates = {
        rule: effective(load_job(JOB, [*OWN, f"tune.scale_learning_rate={rule}"]), values)[RATE]
        for rule in ("none", "sqrt", "linear")
    }
    assert rates == pytest.approx({"none": 0.002, "sqrt": 0.004, "linear": 0.008})
    alone = load_job(JOB, [*OWN, "tune.scale_learning_rate=linear", "tune.search={train.batch_size: {choice: [16]}}"])
    assert effective(alone, {BATCH: 16}) == {BATCH: 16, RATE: 0.001}, "the job's own rate follows too"


def test_a_trial_is_the_job_for_a_while_and_the_best_job_is_the_whole_of_it():
    sets = [*OWN, "tune.epochs=3", "tune.metric=hr@10", "stages=[prepare, tune, train]"]
    job = load_job(JOB, sets)
    assert own_values(job) == {RATE: 2e-3, BATCH: 32}
    trial = trial_job(job, {RATE: 0.01, BATCH: 64})
    assert (trial.train.epochs, trial.train.learning_rate, trial.train.batch_size) == (3, 0.01, 64)
    assert trial.scaling.num_workers == 1 and trial.train.early_stopping.metric == "hr@10"
    best = best_job(job, {RATE: 0.01, BATCH: 64})
    assert best == job.model_copy(
        update={
            "stages": ("prepare", "train"),
            "train": job.train.model_copy(update={"learning_rate": 0.01, "batch_size": 64}),
        }
    )
    unstopped = load_job(JOB, [*sets, "train.early_stopping=null"])
    rule = trial_job(unstopped, {RATE: 0.01, BATCH: 64}).train.early_stopping
    assert (rule.metric, rule.patience) == ("hr@10", 3), "it names the best checkpoint, and stops nothing"


def test_values_that_the_job_refuses_together_are_an_error_with_the_keys():
    with pytest.raises(JobError, match="num_heads"):
        trial_job(load_job(JOB), {"model.dim": 36, "model.num_heads": 8})
