"""The event file as TensorBoard's own reader reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distft.storage import Storage
from distft.train.tensorboard import TensorBoard


def line(step: int, loss: float, kind: str = "train", **more: float) -> dict[str, Any]:
    return {"kind": kind, "step": step, "epoch": 1, "loss": loss, "time_s": 1000.0 + step, **more}


def read(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = {
        tag: [(event.step, event.wall_time, round(event.value, 4)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    return {tag: values for tag, values in found.items() if values}


def test_a_run_that_goes_on_has_every_step_once(tmp_path: Path) -> None:
    first = TensorBoard(Storage(tmp_path))
    first.begin([])
    first.see([line(50, 3.0), line(50, 2.5, "valid", **{"ndcg@10": 0.25})])
    first.see([line(100, 2.0)])  # and killed: no end
    second = TensorBoard(Storage(tmp_path))
    second.begin([line(50, 3.0), line(50, 2.5, "valid", **{"ndcg@10": 0.25})])
    second.see([{"kind": "warning", "step": 50, "attempt": "b", "message": "…", "time_s": 1.0}, line(100, 2.0)])
    assert read(tmp_path) == {
        "train/loss": [(50, 1050.0, 3.0), (100, 1100.0, 2.0)],
        "valid/loss": [(50, 1050.0, 2.5)],
        "valid/ndcg@10": [(50, 1050.0, 0.25)],
    }
    second.end("finished", [line(50, 3.0), line(100, 2.125)])
    assert read(tmp_path) == {"train/loss": [(50, 1050.0, 3.0), (100, 1100.0, 2.125)]}
    TensorBoard(Storage(tmp_path)).begin([line(50, 3.0)])
    assert sorted(path.name[-1] for path in (tmp_path / "tensorboard").iterdir()) == ["1", "2"]


def test_an_open_tensorboard_forgets_what_the_old_file_said(tmp_path: Path) -> None:
    first = TensorBoard(Storage(tmp_path))
    first.begin([line(50, 3.0), line(100, 9.0)])
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    TensorBoard(Storage(tmp_path)).begin([line(50, 3.0), line(75, 2.0)])
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("train/loss")] == [(50, 3.0), (75, 2.0)]


def test_storage_that_cannot_append_gets_it_whole() -> None:
    folder = Storage("memory://tensorboard-test")
    board = TensorBoard(folder)
    board.begin([])
    empty = len(folder.read_bytes("tensorboard/events.out.tfevents.0000000000"))
    board.see([line(50, 3.0)])
    assert len(folder.read_bytes("tensorboard/events.out.tfevents.0000000000")) > empty
