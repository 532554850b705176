"""metrics.jsonl after interruptions."""

from __future__ import annotations

from pathlib import Path

from distft.storage import Storage
from distft.train.journal import METRICS, Journal, parse, read_lines


def test_goes_on_from_a_step_without_the_steps_after_it(tmp_path: Path) -> None:
    folder = Storage(tmp_path)
    journal = Journal(folder, 0)
    for step in (5, 10, 15):
        journal.write(kind="train", step=step, loss=step / 2)
    journal.write(kind="valid", step=10, loss=1.0)
    journal.commit()
    Journal(folder, 10).write(kind="train", step=12, loss=0.5)
    assert [(line["step"], line["kind"]) for line in read_lines(folder)] == [
        (5, "train"),
        (10, "train"),
        (10, "valid"),
        (12, "train"),
    ]


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = Storage(tmp_path)
    Journal(folder, 0).write(kind="train", step=5)
    with open(tmp_path / METRICS, "a", encoding="utf-8") as stream:
        stream.write('{"kind": "train", "st')
    assert [line["step"] for line in read_lines(folder)] == [5]
    Journal(folder, 5).write(kind="train", step=6)
    assert [line["step"] for line in read_lines(folder)] == [5, 6]
    assert list(parse("")) == []


def test_works_on_storage_that_cannot_append() -> None:
    folder = Storage("memory://journal")
    journal = Journal(folder, 0)
    journal.write(kind="train", step=1)
    assert list(read_lines(folder)) == []
    journal.commit()
    assert [line["step"] for line in read_lines(folder)] == [1]
    assert [line["step"] for line in read_lines(folder)] == [1]
    Journal(folder, 0)
    assert list(read_lines(folder)) == []
