"""Any world size and any ZeRO stage loads what any other wrote, and only what is whole."""

from __future__ import annotations

import itertools
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from distft.errors import ArtefactError, TrainingError
from distft.models.weights import read_weights
from distft.sections.train import Checkpoint as Rules
from distft.sections.train import Train
from distft.storage import MANIFEST, Storage
from distft.train.checkpoint import Progress, committed, load_optimizer, load_weights, newest
from distft.train.engine import Engine
from distft.train.saving import Saver
from distft.train.step import Step, train_step
from tests.train.ranks import Toy, ToyLoss, run_ranks, toy_batch

CPU = torch.device("cpu")
State = dict[str, tuple[int, torch.Tensor]]


def start(train: dict[str, Any], folder: Storage) -> tuple[Engine, Progress]:
    """An engine that goes on from the newest checkpoint in ``folder``, or from the same fresh weights."""
    job = Train.model_validate(train)
    torch.manual_seed(3)
    module = Step(Toy(), ToyLoss())
    found = newest(folder)
    weights = load_weights(found, module) if found else {}
    engine = Engine(module, job, CPU)
    if found:
        load_optimizer(found, engine, weights)
    return engine, found.progress if found else Progress()


def advance(engine: Engine, progress: Progress, steps: int) -> None:
    for _ in range(steps):
        batches = [toy_batch(3, 100 * progress.step + engine.rank), toy_batch(2, 100 * progress.step + 50)]
        if engine.world_size == 1:  # the batch of the step is the same on any number of ranks
            batches = [*batches, toy_batch(3, 100 * progress.step + 1), toy_batch(2, 100 * progress.step + 50)]
        train_step(engine, batches, toy_batch(0, 0), progress.step, 0.02)
        progress.step += 1


def state_of(engine: Engine) -> State:
    """This rank's slices of the weights and of all optimiser state."""
    held: State = {}
    for part in engine.slices():
        held[part.name] = (part.offset, part.view(part.master).clone())
        held |= {f"{key}/{part.name}": (part.offset, v.clone()) for key, v in engine.optimizer_state(part).items()}
    held["steps"] = (0, torch.tensor([float(engine.optimizer_steps)]))
    return held


def run(train: dict[str, Any], uri: str, steps: int) -> State:
    """Restores, trains ``steps`` steps, saves if it trained, and gives the state."""
    folder = Storage(uri)
    engine, progress = start(train, folder)
    advance(engine, progress, steps)
    if steps:
        saver = Saver(folder, engine, Rules(keep=2))
        saver.save(progress)
        saver.drain()
        saver.close()
    held = state_of(engine)
    engine.close()
    return held


def run_all(jobs: list[tuple[dict[str, Any], str, int]]) -> list[State]:
    return [run(*job) for job in jobs]


def whole(ranks: list[State]) -> dict[str, torch.Tensor]:
    """The ranks' slices put together."""
    full: dict[str, torch.Tensor] = {}
    for name in {name for rank in ranks for name in rank}:
        parts = {rank[name][0]: rank[name][1] for rank in ranks if name in rank}
        full[name] = torch.cat([parts[offset] for offset in sorted(parts)])
    return full


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=tolerance, rtol=0, msg=name)


def stage(number: int, **changes: Any) -> dict[str, Any]:
    return {"zero": {"stage": number}, **changes}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(range(4), range(4))))
def test_stage_after_stage_restores_every_bit(before: int, after: int, tmp_path: Path, one_rank: None) -> None:
    saved = run(stage(before), str(tmp_path), 2)
    assert_same(whole([run(stage(after), str(tmp_path), 0)]), whole([saved]))


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_interrupted_equals_undisturbed(kind: str, tmp_path: Path, one_rank: None) -> None:
    train = stage(2, optimizer=kind)
    undisturbed = run(train, str(tmp_path / "a"), 4)
    run(train, str(tmp_path / "b"), 2)
    assert_same(whole([run(train, str(tmp_path / "b"), 2)]), whole([undisturbed]))


@pytest.mark.parametrize("number", range(4))
def test_bf16_restores_the_fp32_weights(number: int, tmp_path: Path, one_rank: None) -> None:
    train = stage(number, precision="bf16")
    saved = run(train, str(tmp_path), 3)
    assert_same(whole([run(train, str(tmp_path), 0)]), whole([saved]))


def test_two_ranks_restore_what_one_wrote_and_the_other_way(tmp_path: Path, one_rank: None) -> None:
    saved = [run(stage(number), str(tmp_path / f"one-{number}"), 2) for number in (0, 3)]
    jobs = [(stage(2), str(tmp_path / "one-0"), 0), (stage(1), str(tmp_path / "one-3"), 0)]
    jobs += [(stage(number), str(tmp_path / f"two-{number}"), 2) for number in (0, 3)]
    ranks = run_ranks(2, run_all, jobs)
    assert_same(whole([rank[0] for rank in ranks]), whole([saved[0]]))
    assert_same(whole([rank[1] for rank in ranks]), whole([saved[1]]))
    for index, number in ((2, 0), (3, 3)):
        back = run(stage(2), str(tmp_path / f"two-{number}"), 0)
        assert_same(whole([back]), whole([rank[index] for rank in ranks]))


@pytest.mark.proof
@pytest.mark.parametrize("worlds", [(1, 2), (2, 4), (4, 2), (2, 1), (4, 1)])
def test_matrix_of_stages_and_ranks(worlds: tuple[int, int], tmp_path: Path) -> None:
    pairs = list(itertools.product(range(4), range(4)))
    first = run_ranks(worlds[0], run_all, [(stage(a), str(tmp_path / f"{a}{b}"), 2) for a, b in pairs])
    second = run_ranks(worlds[1], run_all, [(stage(b), str(tmp_path / f"{a}{b}"), 0) for a, b in pairs])
    for index in range(len(pairs)):
        assert_same(whole([rank[index] for rank in second]), whole([rank[index] for rank in first]))


def test_read_weights_gives_the_whole_model_by_name(tmp_path: Path, one_rank: None) -> None:
    held = run(stage(3), str(tmp_path), 2)
    weights = read_weights(Storage(tmp_path) / "checkpoints/step-2")
    fresh = Toy()
    fresh.load_state_dict(weights)
    assert torch.equal(weights["items.weight"].flatten(), held["model.items.weight"][1])
    assert torch.equal(weights["seen"], torch.arange(3))


def test_another_model_is_refused_by_name(tmp_path: Path, one_rank: None) -> None:
    run(stage(2), str(tmp_path), 1)
    found = newest(Storage(tmp_path))
    assert found is not None
    other = Step(Toy(), ToyLoss())
    other.model.mix = torch.nn.Linear(6, 7)  # type: ignore[assignment]
    with pytest.raises(ArtefactError, match=r"model\.mix"):
        load_weights(found, other)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("kind", ["weights", "optimizer", "state", "manifest"])
def test_damage_is_named_and_the_checkpoint_before_is_used(
    kind: str, damage: str, tmp_path: Path, one_rank: None, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(stage(2), str(tmp_path), 1)
    run(stage(2), str(tmp_path), 1)
    target = next((tmp_path / "checkpoints" / "step-2").glob(f"{kind}*"))
    if damage == "flip":
        flip(target)
    elif damage == "truncate":
        target.write_bytes(target.read_bytes()[:-7])
    else:
        target.unlink()
    with caplog.at_level(logging.WARNING):
        assert_same(whole([run(stage(2), str(tmp_path), 0)]), whole([first]))
    assert (kind == "manifest" and damage == "remove") or "step-2" in caplog.text


def swapped(first: Path, second: Path) -> None:
    """The second file in the place of the first."""
    assert first.stat().st_size == second.stat().st_size, "a size alone tells nothing"
    first.write_bytes(second.read_bytes())


def files_of(folder: Path, step: int, kind: str) -> list[Path]:
    return sorted((folder / "checkpoints" / f"step-{step}").glob(f"{kind}*"))


def test_a_file_of_another_step_is_found_and_the_checkpoint_before_is_used(tmp_path: Path, one_rank: None) -> None:
    saved = [run(stage(2), str(tmp_path), 1) for _ in range(3)]
    swapped(files_of(tmp_path, 3, "weights")[0], files_of(tmp_path, 2, "weights")[0])
    assert_same(whole([run(stage(2), str(tmp_path), 0)]), whole([saved[1]]))
    swapped(files_of(tmp_path, 2, "optimizer")[0], files_of(tmp_path, 3, "optimizer")[0])
    with pytest.raises(TrainingError, match=r"step-3 is damaged: .*weights.*step-2 is damaged: .*optimizer"):
        start(stage(2), Storage(tmp_path))


@pytest.mark.proof
def test_a_file_of_another_rank_is_found_and_the_checkpoint_before_is_used(tmp_path: Path, one_rank: None) -> None:
    train = stage(0, optimizer="sgd")
    ranks = run_ranks(2, run_all, [(train, str(tmp_path), 1)] * 2)
    swapped(*files_of(tmp_path, 2, "optimizer"))
    assert_same(whole([run(train, str(tmp_path), 0)]), whole([rank[0] for rank in ranks]))


def test_a_folder_of_another_step_is_found(tmp_path: Path, one_rank: None) -> None:
    first = run(stage(2), str(tmp_path), 1)
    run(stage(2), str(tmp_path), 1)
    shutil.rmtree(tmp_path / "checkpoints/step-2")
    shutil.copytree(tmp_path / "checkpoints/step-1", tmp_path / "checkpoints/step-2")
    found = newest(Storage(tmp_path))
    assert found is not None and found.progress.step == 1
    assert "step-2 is damaged: it holds step 1" in found.passed_over[0]
    assert_same(whole([run(stage(2), str(tmp_path), 0)]), whole([first]))


def test_a_manifest_that_is_missing_is_told(tmp_path: Path, one_rank: None) -> None:
    run(stage(2), str(tmp_path), 1)
    run(stage(2), str(tmp_path), 1)
    (tmp_path / "checkpoints/step-2" / MANIFEST).unlink()
    found = newest(Storage(tmp_path))
    assert found is not None and found.progress.step == 1
    assert "step-2 was committed, and its manifest.json is missing" in found.passed_over[0]


def test_training_does_not_start_anew_by_itself(tmp_path: Path, one_rank: None) -> None:
    run(stage(2), str(tmp_path), 1)
    flip(files_of(tmp_path, 1, "weights")[0])
    with pytest.raises(TrainingError, match=r"step-1 is damaged: .*weights-.*SHA-256.*--force"):
        newest(Storage(tmp_path))
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(TrainingError, match=r"step-1 was committed, and its manifest.json is missing"):
        newest(Storage(tmp_path))
    (tmp_path / "latest.json").write_bytes(b"{")
    assert newest(Storage(tmp_path)) is None


@pytest.mark.proof
def test_every_flipped_bit_of_every_file_is_found(
    tmp_path: Path, one_rank: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    run(stage(2), str(tmp_path), 1)
    run(stage(2), str(tmp_path), 1)
    folder, kinds = Storage(tmp_path), []
    for path in sorted((tmp_path / "checkpoints/step-2").iterdir()):
        data = path.read_bytes()
        for place, bit in itertools.product(range(len(data)), range(8)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            found = newest(folder)
            assert found is not None and found.progress.step == 1, f"bit {bit} of byte {place} of {path.name}"
        path.write_bytes(data)
        kinds.append(path.name.split("-")[0])
    assert kinds == [MANIFEST, "optimizer", "state", "weights"]
    intact = newest(folder)
    assert intact is not None and intact.progress.step == 2


def test_what_an_aborted_attempt_left_is_neither_read_nor_kept(tmp_path: Path, one_rank: None) -> None:
    run(stage(2), str(tmp_path), 1)
    stale = tmp_path / "checkpoints" / "step-2" / "weights-dead0000-00001.safetensors"
    stale.parent.mkdir()
    stale.write_bytes(save({"model.items.weight": torch.zeros(5)}))
    assert committed(Storage(tmp_path) / "checkpoints") == ["step-1"]
    run(stage(2), str(tmp_path), 1)
    assert not stale.exists()
    assert committed(Storage(tmp_path) / "checkpoints") == ["step-2", "step-1"]


def test_rotation_keeps_the_latest_and_the_best(tmp_path: Path, one_rank: None) -> None:
    folder = Storage(tmp_path)
    engine, progress = start(stage(1), folder)
    saver = Saver(folder, engine, Rules(keep=2))
    for step in range(1, 7):
        advance(engine, progress, 1)
        progress.best_step = min(step, 2)
        saver.save(progress)
    saver.close()
    assert committed(folder / "checkpoints") == ["step-6", "step-5", "step-2"]
    assert (tmp_path / "checkpoints" / "step-2" / MANIFEST).exists()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-6", "step-5", "step-2"}


def test_works_on_storage_that_is_no_folder(one_rank: None) -> None:
    first = run(stage(2), "memory://checkpoints-of-a-test", 2)
    run(stage(2), "memory://checkpoints-of-a-test", 2)
    second = run(stage(3), "memory://checkpoints-of-a-test", 2)
    root = Storage("memory://checkpoints-of-a-test") / "checkpoints"
    assert committed(root) == ["step-6", "step-4"]
    assert_same(whole([run(stage(0), "memory://checkpoints-of-a-test", 0)]), whole([second]))
    assert first.keys() == second.keys()
