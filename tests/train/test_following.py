"""Observers of a training: what they see of a journal that grows, is cut back, and ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from distft.storage import Storage
from distft.train.following import Line, Observer, following
from distft.train.journal import Journal


class Witness(Observer):
    def __init__(self) -> None:
        self.known: list[int] = []
        self.seen: list[tuple[str, int]] = []
        self.ended: Any = None

    def begin(self, known: Sequence[Line]) -> None:
        self.known = [line["step"] for line in known]

    def see(self, lines: Sequence[Line]) -> None:
        self.seen += [(line["kind"], line["step"]) for line in lines]

    def end(self, ending: str, journal: Sequence[Line]) -> None:
        self.ended = (ending, [line["step"] for line in journal])


def test_lines_are_seen_once_also_when_restarted_workers_write_them_again(tmp_path: Path) -> None:
    folder, witness = Storage(tmp_path), Witness()
    journal = Journal(folder, 0)
    journal.write(kind="train", step=5)
    with following(folder, [witness]):
        journal.write(kind="train", step=10)
        journal.write(kind="valid", step=10)
        deadline = time.monotonic() + 5
        while len(witness.seen) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        again = Journal(folder, 5)
        again.warn("going on from step 5", 5, "b")
        again.write(kind="train", step=10)
        again.write(kind="valid", step=10)
        again.write(kind="train", step=15)
    assert witness.known == [5]
    assert witness.seen == [("train", 10), ("valid", 10), ("warning", 5), ("train", 15)]
    assert witness.ended == ("finished", [5, 5, 10, 10, 15])


@pytest.mark.parametrize(("error", "ending"), [(KeyboardInterrupt, "interrupted"), (ValueError, "failed")])
def test_an_observer_learns_how_it_ended(tmp_path: Path, error: type[BaseException], ending: str) -> None:
    witness = Witness()
    with pytest.raises(error), following(Storage(tmp_path), [witness]):
        raise error
    assert witness.ended == (ending, [])
