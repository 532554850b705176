"""Three resumes on other numbers of ranks and other ZeRO stages: each row trained on once, the loss as undisturbed.

What is logged is what reaches the optimiser: the rows of every micro-batch of every step, on every rank.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from distft.job import Job
from distft.schema import Batch
from distft.storage import Storage
from distft.train import loop as loop_module
from distft.train.engine import Engine
from distft.train.loop import Loop
from distft.train.step import StepResult
from tests.train.datasets import circle_job, write_circle
from tests.train.ranks import run_ranks

pytestmark = pytest.mark.proof

NUM_STEPS = 64
Segments = tuple[tuple[int, int, int], ...]
"""(number of ranks, ZeRO stage, step before which the attempt is interrupted) of each attempt."""


class Interruption(Exception):
    pass


@dataclass
class Log:
    """What one rank of one attempt did: step → user rows, and step → mean loss over all ranks."""

    rows: dict[int, list[int]]
    losses: dict[int, float]


def logged(job: Job, root: Storage, stop: int) -> Log:
    log, real = Log({}, {}), loop_module.train_step

    def logging_step(engine: Engine, batches: list[Batch], empty: Batch, step: int, rate: float) -> StepResult:
        if step == stop:
            raise Interruption
        result = real(engine, batches, empty, step, rate)
        log.rows[step] = [int(row) for batch in batches for row in batch.user_row_B]
        log.losses[step] = result.loss_sum / result.count
        return result

    loop_module.train_step = logging_step  # type: ignore[assignment]  # in a process of its own
    try:
        Loop(job, root, "train", torch.device("cpu"), lambda line: None).run()
    except Interruption:
        pass
    return log


def trained(root: Path, segments: Segments) -> tuple[Counter[int], dict[int, float], int]:
    """(how often each user's row is in the final weights, the loss of each step, number of steps taken twice)."""
    storage = write_circle(root, users_per_shard=NUM_STEPS * 20 // 4)
    rows: dict[int, list[int]] = {}
    losses: dict[int, float] = {}
    taken = 0
    for num_ranks, stage, stop in segments:
        settings: dict[str, Any] = {"model": {"dropout": 0}, "epochs": 1, "zero": {"stage": stage}}
        settings |= {"checkpoint": {"every_steps": 7}, "decay": "cosine", "max_tokens_per_micro_batch": 60}
        logs = run_ranks(num_ranks, logged, circle_job(root, **settings), storage, stop)
        first = min(logs[0].rows)
        rows = {step: found for step, found in rows.items() if step < first}  # the rest was undone by the resume
        for log in logs:
            for step, found in log.rows.items():
                rows.setdefault(step, []).extend(found)
        losses |= logs[0].losses
        taken += len(logs[0].rows)
    return Counter(row for found in rows.values() for row in found), losses, taken - NUM_STEPS


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    rows, losses, again = trained(tmp_path_factory.mktemp("calm"), ((2, 2, -1),))
    assert set(rows.values()) == {1} and len(rows) == NUM_STEPS * 20 and again == 0
    return losses


@pytest.mark.parametrize(
    "segments",
    [((2, 2, 24), (1, 2, 45), (3, 2, -1)), ((2, 3, 24), (2, 1, 45), (2, 3, -1))],
    ids=["ranks-2-1-3", "stages-3-1-3"],
)
def test_every_row_once_and_the_loss_as_undisturbed(
    segments: Segments, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    rows, losses, again = trained(tmp_path, segments)
    assert len(rows) == NUM_STEPS * 20 and set(rows.values()) == {1}
    assert losses.keys() == undisturbed.keys()
    assert 0 < again <= 2 * 7, "of each interrupted attempt, no more than one checkpoint interval is done again"
    gaps = [abs(losses[step] / undisturbed[step] - 1) for step in range(NUM_STEPS)]
    print(
        f"largest relative difference of the loss: {max(gaps):.1e}, after 50 steps {gaps[50]:.1e}; {again} steps again"
    )
    assert max(gaps) < 1e-4
