"""State that rests in files: the same training, less memory, and nothing left on the disk."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from distft.errors import StorageError, UsageError
from distft.sections.train import Train
from distft.train import resting
from distft.train.engine import Engine
from distft.train.resting import RestingTensors
from distft.train.step import Step, train_step
from tests.train.ranks import Toy, ToyLoss, run_ranks, toy_batch
from tests.train.test_checkpoint import State, assert_same, run, stage, state_of, whole
from tests.train.test_step import CPU, config

MIB = 1 << 20


def filed(number: int, folder: Path, **changes: Any) -> dict[str, Any]:
    return config(zero={"stage": number, "offload": "nvme", "nvme_path": str(folder)}, **changes)


def in_memory(number: int, **changes: Any) -> dict[str, Any]:
    return config(zero={"stage": number, "offload": "cpu"}, **changes)


class Wide(Toy):
    """Parameters of 4 MiB beside some of a few bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(6, 1024), torch.nn.Linear(1024, 6)
        self.middle = torch.nn.Linear(1024, 1024)

    def states(self, batch: Any) -> torch.Tensor:
        return self.down(torch.tanh(self.middle(torch.tanh(self.up(super().states(batch))))))


def states_after_steps(trains: list[dict[str, Any]]) -> list[State]:
    found = []
    for train in trains:
        torch.manual_seed(5)
        engine = Engine(Step(Wide(), ToyLoss()), Train.model_validate(train), CPU)
        for step in range(3):
            train_step(engine, [toy_batch(3, 10 * step + engine.rank), toy_batch(2, step)], toy_batch(0, 0), step, 0.05)
        found.append(state_of(engine))
        engine.close()
    return found


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd"}, {"precision": "bf16"}], ids=str)
def test_one_rank_trains_the_same_from_files(
    number: int, changes: dict[str, Any], tmp_path: Path, one_rank: None
) -> None:
    filed_state, kept_state = states_after_steps([filed(number, tmp_path, **changes), in_memory(number, **changes)])
    assert_same(whole([filed_state]), whole([kept_state]))
    assert not list(tmp_path.iterdir())


def test_two_ranks_train_the_same_from_files(tmp_path: Path) -> None:
    trains = [train for number in (1, 2, 3) for train in (filed(number, tmp_path), in_memory(number))]
    ranks = run_ranks(2, states_after_steps, trains)
    for index in range(0, len(trains), 2):
        assert_same(whole([rank[index] for rank in ranks]), whole([rank[index + 1] for rank in ranks]))
    assert not list(tmp_path.iterdir())


def test_a_training_from_files_is_saved_and_goes_on_anywhere(tmp_path: Path, one_rank: None) -> None:
    train = filed(2, tmp_path / "disk")
    undisturbed = run(train, str(tmp_path / "a"), 4)
    run(train, str(tmp_path / "b"), 2)
    assert_same(whole([run(train, str(tmp_path / "b"), 2)]), whole([undisturbed]))
    assert_same(whole([run(config(**stage(3)), str(tmp_path / "b"), 0)]), whole([undisturbed]))


def test_what_rests_takes_no_memory_and_keeps_its_values(tmp_path: Path) -> None:
    process, values = psutil.Process(), torch.arange(16 * MIB, dtype=torch.float32)
    gc.collect()
    before = process.memory_full_info().pss
    held = RestingTensors(str(tmp_path))
    moved = held.moved(values)
    touched = process.memory_full_info().pss - before
    held.rest()
    resting_bytes = process.memory_full_info().pss - before
    assert (touched > 60 * MIB, resting_bytes < 8 * MIB) == (True, True)
    assert torch.equal(moved, values)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before_anything_is_written_to_it(
    make_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resting, "IN_MEMORY", ())  # the small disk of this test is one
    held = RestingTensors(str(make_disk("96k")))
    with pytest.raises(StorageError, match=r"No space left.*4,194,304 bytes more.*train\.zero\.nvme_path"):
        held.zeros_like(torch.zeros(MIB))


def test_a_folder_that_is_no_disk_is_refused(make_disk: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lies in memory \(tmpfs\)"):
        RestingTensors(str(make_disk("96k")))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written to"):
        RestingTensors(str(tmp_path / "file"))
