"""Checkpoints behind the training: what it may do meanwhile, when they count, and what a failed one leaves."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distft.errors import TrainingError
from distft.sections.train import Checkpoint as Rules
from distft.storage import Storage
from distft.train import saving
from distft.train.checkpoint import FOLDER, committed
from distft.train.saving import BEST, Saver
from tests.train.kills import kill
from tests.train.ranks import run_ranks
from tests.train.storages import Gated
from tests.train.test_checkpoint import State, advance, assert_same, run, stage, start, state_of, whole


def gated(pattern: str) -> Storage:
    Gated.close_for(pattern)
    return Storage(f"gated://{uuid.uuid4().hex}")


def test_steps_go_on_while_a_checkpoint_is_written_and_are_not_in_it(one_rank: None) -> None:
    folder, told = gated("weights-*"), []
    engine, progress = start(stage(2), folder)
    advance(engine, progress, 2)
    at_the_step, saver = state_of(engine), Saver(folder, engine, Rules())
    saver.save(progress, told.append)
    for _ in range(3):
        advance(engine, progress, 1)
        saver.poll()
    assert (committed(folder / FOLDER), told) == ([], [])
    Gated.opened.set()
    saver.drain()
    assert told == [f"{folder}/{FOLDER}/step-2"]
    saver.close()
    engine.close()
    assert_same(whole([run(stage(1), str(folder), 0)]), whole([at_the_step]))


def test_poll_ends_a_checkpoint_that_is_committed(tmp_path: Path, one_rank: None) -> None:
    told: list[str] = []
    engine, progress = start(stage(1), Storage(tmp_path))
    saver = Saver(Storage(tmp_path), engine, Rules())
    advance(engine, progress, 1)
    saver.save(progress, told.append)
    deadline = time.monotonic() + 20
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
        saver.poll()
    assert told == [f"{tmp_path}/{FOLDER}/step-1"]
    saver.poll()
    saver.drain()
    assert len(told) == 1
    saver.close()


def test_the_next_one_waits_for_the_one_before(one_rank: None) -> None:
    folder, order = gated("manifest.json"), []
    engine, progress = start(stage(2), folder)
    saver = Saver(folder, engine, Rules())
    advance(engine, progress, 1)
    saver.save(progress, lambda path: order.append("committed"))
    timer = saving.threading.Timer(0.3, lambda: (order.append("opened"), Gated.opened.set()))
    timer.start()
    advance(engine, progress, 1)
    saver.save(progress)
    assert order == ["opened", "committed"]
    saver.close()
    assert committed(folder / FOLDER) == ["step-2", "step-1"]


def test_the_manifest_is_last_and_only_then_is_anything_named_or_removed(one_rank: None) -> None:
    folder = gated("nothing")
    engine, progress = start(stage(2), folder)
    saver = Saver(folder, engine, Rules(keep=1), lambda: Gated.written.append("metrics"))
    advance(engine, progress, 1)
    progress.best_step = 1
    saver.save(progress)
    saver.drain()
    kinds = [name.split("-")[0] for name in Gated.written]
    assert kinds == ["weights", "optimizer", "metrics", "state", "manifest.json", "latest.json", "best.json"]
    Gated.close_for("manifest.json")
    advance(engine, progress, 1)
    progress.best_step = 2
    saver.save(progress)
    while not any(name.startswith("state-") for name in Gated.written):
        time.sleep(0.01)
    assert folder.read_json(BEST)["checkpoint"] == f"{FOLDER}/step-1"
    assert committed(folder / FOLDER) == ["step-1"]
    Gated.opened.set()
    saver.drain()
    assert folder.read_json(BEST)["checkpoint"] == f"{FOLDER}/step-2"
    assert committed(folder / FOLDER) == ["step-2"]
    saver.close()


def test_without_asynchrony_it_is_committed_when_save_returns(tmp_path: Path, one_rank: None) -> None:
    folder, told = Storage(tmp_path), []
    engine, progress = start(stage(2), folder)
    saver = Saver(folder, engine, Rules(asynchronous=False))
    advance(engine, progress, 1)
    saver.save(progress, told.append)
    assert committed(folder / FOLDER) == ["step-1"] and told
    saver.close()


@pytest.mark.parametrize(
    ("keep", "bests", "left"), [(1, [1, 2, 3], [3]), (1, [1, 1, 1], [3, 1]), (2, [1, 2, 2], [3, 2])]
)
def test_the_latest_and_the_best_stay(
    keep: int, bests: list[int], left: list[int], tmp_path: Path, one_rank: None
) -> None:
    folder = Storage(tmp_path)
    engine, progress = start(stage(2), folder)
    saver = Saver(folder, engine, Rules(keep=keep))
    for best in bests:
        advance(engine, progress, 1)
        progress.best_step = best
        saver.save(progress)
    saver.close()
    assert committed(folder / FOLDER) == [f"step-{step}" for step in left]
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {f"step-{step}" for step in left}
    named = json.loads((tmp_path / BEST).read_text())["checkpoint"]
    (folder / named).verified("checkpoint")


def test_what_best_json_names_stays_while_the_search_begins_anew(tmp_path: Path, one_rank: None) -> None:
    folder = Storage(tmp_path)
    engine, progress = start(stage(2), folder)
    saver = Saver(folder, engine, Rules(keep=1))
    for best in (1, 0, 0):
        advance(engine, progress, 1)
        progress.best_step = best
        saver.save(progress)
    saver.close()
    assert committed(folder / FOLDER) == ["step-3", "step-1"]


# -- what can go wrong -------------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_the_checkpoint_before_is_intact(
    make_disk: Callable[[str], Path], one_rank: None
) -> None:
    small_disk = make_disk("96k")
    folder = Storage(small_disk)
    engine, progress = start(stage(2), folder)
    saver = Saver(folder, engine, Rules())
    advance(engine, progress, 1)
    saver.save(progress)
    saver.drain()
    kept = state_of(engine)
    advance(engine, progress, 1)
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (free - 4096))  # room for one of the two files of slices
    saver.save(progress)
    with pytest.raises(TrainingError, match=r"checkpoint of step 2 was not written: .*No space left.*Free some space"):
        saver.drain()
    saver.close()
    engine.close()
    assert not list((small_disk / FOLDER / "step-2").iterdir()), "what was written of it would only fill the disk"
    ballast.unlink()
    assert_same(whole([run(stage(2), str(small_disk), 0)]), whole([kept]))
    run(stage(2), str(small_disk), 1)
    assert committed(folder / FOLDER) == ["step-2", "step-1"]


def train_until_told(uri: str, failing: int) -> tuple[str, int, State]:
    """Saves at steps 1 and 2, of which rank ``failing`` cannot write the second; the error, and the step it came at."""
    folder = Storage(uri)
    engine, progress = start(stage(2), folder)
    saver = Saver(folder, engine, Rules())
    advance(engine, progress, 1)
    saver.save(progress)
    saver.drain()
    kept = state_of(engine)
    advance(engine, progress, 1)
    if engine.rank == failing:
        blocker = f"optimizer-{saver.attempt}-{failing:05d}.safetensors"
        (folder.path / FOLDER / "step-2" / blocker).mkdir(parents=True)
    message = ""
    saver.save(progress)
    while not message:
        advance(engine, progress, 1)
        try:
            saver.poll()
        except TrainingError as error:
            message = str(error)
    saver.close()
    return message, progress.step, kept


def test_a_write_that_fails_on_one_rank_is_told_by_all_at_the_same_step(tmp_path: Path, one_rank: None) -> None:
    ranks = run_ranks(2, train_until_told, str(tmp_path), 1)
    assert ranks[0][:2] == ranks[1][:2]
    assert "The checkpoint of step 2 was not written" in ranks[0][0]
    assert committed(Storage(tmp_path) / FOLDER) == ["step-1"]
    assert_same(whole([run(stage(2), str(tmp_path), 0)]), whole([rank[2] for rank in ranks]))


def save_on_slow_storage(uri: str) -> tuple[State, int]:
    folder = Storage(uri)
    engine, progress = start(stage(3), folder)
    saver, told, steps = Saver(folder, engine, Rules()), [], 0
    advance(engine, progress, 2)
    held = state_of(engine)
    saver.save(progress, told.append)
    while not told:
        advance(engine, progress, 1)
        saver.poll()
        steps += 1
    saver.close()
    return held, steps


@pytest.mark.proof
def test_two_ranks_train_on_while_slow_storage_takes_its_time(tmp_path: Path, one_rank: None) -> None:
    ranks = run_ranks(2, save_on_slow_storage, f"slow://{tmp_path}")
    assert ranks[0][1] == ranks[1][1] >= 3
    assert_same(whole([run(stage(0), f"slow://{tmp_path}", 0)]), whole([rank[0] for rank in ranks]))


def test_an_error_of_the_training_does_not_lose_the_checkpoint_in_flight(one_rank: None) -> None:
    folder = gated("weights-*")
    engine, progress = start(stage(2), folder)
    saver = Saver(folder, engine, Rules())
    advance(engine, progress, 1)
    saver.save(progress)
    saving.threading.Timer(0.2, Gated.opened.set).start()
    with torch.no_grad():
        engine.parameters["model.mix.weight"][0, 0] = torch.nan
    with pytest.raises(TrainingError, match="loss"):
        try:
            advance(engine, progress, 1)
        finally:
            saver.close()
    assert committed(folder / FOLDER) == ["step-1"]


@pytest.mark.proof
@pytest.mark.parametrize(("world_size", "count"), [(1, 30), (2, 20)])
def test_sigkill_inside_a_checkpoint_leaves_the_newest_one_whole(
    world_size: int, count: int, tmp_path: Path, one_rank: None
) -> None:
    tally = kill(tmp_path, world_size, count, seed=world_size)
    assert tally.intact == tally.kills == count
    assert tally.half_written > count / 2, "most kills must have met a checkpoint half way"


def test_rules_that_change_decide_what_the_next_checkpoint_waits_for(tmp_path: Path, one_rank: None) -> None:
    engine, progress = start(stage(2), Storage(tmp_path))
    saver = Saver(Storage(tmp_path), engine, Rules())
    advance(engine, progress, 1)
    saver.rules = Rules(asynchronous=False)
    saver.save(progress)
    assert saver._thread is None and committed(Storage(tmp_path) / FOLDER) == ["step-1"]
    saver.close()
