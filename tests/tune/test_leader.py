"""The leader of a search: the same trials come out in whatever order they report, and after a restart."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distft.job import Job
from distft.storage import Storage
from distft.tune.leader import Leader, Plan
from distft.tune.ledger import Ledger
from tests.train.datasets import circle_job

EPOCHS, TRIALS = 6, 12


def job_of(root: Path) -> Job:
    section = {"num_trials": TRIALS, "epochs": EPOCHS, "search": {"train.learning_rate": {"loguniform": [1e-4, 1e-1]}}}
    written = circle_job(root).model_dump(mode="json", by_alias=True)
    return Job.model_validate({**written, "tune": section})


def value(number: int, epoch: int) -> float:
    return float(np.random.default_rng([number, epoch]).random() + 0.2 * np.random.default_rng(number).random() * epoch)


class Played:
    """A search whose trials report in an order that a seed draws; their processes end when they hear of it."""

    def __init__(self, root: Path, concurrent: int, seed: int) -> None:
        self.job, self.root, self.concurrent, self.draw = job_of(root), root, concurrent, random.Random(seed)
        self.start()

    def start(self) -> None:
        folder = Storage(self.root / "tune")
        (folder / "trials").make()
        plan = Plan(TRIALS, self.concurrent, self.concurrent + 1, False)
        self.leader = Leader(self.job, Ledger(folder, "ndcg@10"), plan, lambda trials, total: None, lambda text: None)
        self.running: dict[int, int] = {}
        self.leader.begin()

    def play(self, reports: int = 10_000) -> None:
        for _ in range(reports):
            while (trial := self.leader.next_trial()) is not None:
                self.running[trial.number] = 0
                self.leader.ledger.place(trial).write_bytes("metrics.jsonl", b"")
            if not self.running:
                return
            self.report(self.draw.choice(sorted(self.running)))

    def report(self, number: int) -> None:
        epoch = self.running[number] = self.running[number] + 1
        line = {"kind": "valid", "step": epoch, "epoch": epoch, "ndcg@10": value(number, epoch), "time_s": 0.0}
        with open(self.root / f"tune/trials/{number:04d}/metrics.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        if not self.leader.reported(number, epoch) or epoch == EPOCHS:
            del self.running[number]
            self.leader.ended(number)

    def outcome(self) -> list[Any]:
        trials = Ledger(Storage(self.root / "tune"), "ndcg@10").trials
        return [(n, one.values, one.status, one.curve, one.best_value) for n, one in sorted(trials.items())]


@pytest.mark.parametrize("concurrent", [2, 4])
def test_the_same_trials_come_out_in_whatever_order_they_report(tmp_path: Path, concurrent: int) -> None:
    outcomes = []
    for seed in range(4):
        played = Played(tmp_path / str(seed), concurrent, seed)
        played.play()
        outcomes.append(played.outcome())
    assert all(outcome == outcomes[0] for outcome in outcomes)
    statuses = [status for _, _, status, _, _ in outcomes[0]]
    assert len(statuses) == TRIALS and set(statuses) == {"finished", "ended early"}
    assert "ended early" in statuses[1:concurrent], "those that began together are compared too"


def test_a_leader_that_starts_anew_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    calm, struck = (Played(tmp_path / name, 2, seed) for seed, name in enumerate(("calm", "struck")))
    calm.play()
    for _ in range(6):
        struck.play(reports=4)
        struck.start()
    struck.play()
    assert struck.outcome() == calm.outcome()


def test_what_ends_early_was_behind_the_best_third_of_those_before_it(tmp_path: Path) -> None:
    played = Played(tmp_path, 3, 0)
    played.play()
    trials = Ledger(Storage(tmp_path / "tune"), "ndcg@10").trials
    for number, trial in trials.items():
        if trial.status == "ended early":
            rung = trial.epochs
            peers = [trials[m].curve for m in range(number) if trials[m].epochs >= rung]
            others = [max(found for epoch, found in curve if epoch <= rung) for curve in peers]
            assert max(found for _, found in trial.curve) < np.quantile(others, 2 / 3)
