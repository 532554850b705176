"""Lines of "user item item ...": every item an event, every line accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distft.data.sources.sequences.config import Config
from distft.errors import DataError


def read(path: Path, **keys: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    source = Config(path=str(path), **keys).open()
    batches = [batch for task in source.read_tasks() for batch in source.read(task)]
    events = [row for batch in batches for row in batch.events.to_pylist()]
    return events, [row for batch in batches for row in batch.rejected.to_pylist()]


def test_every_item_of_a_line_is_an_event_in_order(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("u1 9 8 9\n\nu2  7\n")
    events, rejected = read(tmp_path / "log.txt")
    assert [(row["row"], row["user_id"], row["item_id"]) for row in events] == [
        (1, "u1", "9"), (1, "u1", "8"), (1, "u1", "9"), (3, "u2", "7"),
    ]  # fmt: skip
    assert {row["event"] for row in events} == {"purchase"}
    assert all(row["time_ms"] is None for row in events)
    assert rejected == []
    assert not Config(path=str(tmp_path / "log.txt")).open().has_clock


def test_a_line_without_items_or_that_is_no_text_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(b"u1 9\nlonely\nu2 \xff\nu3 1")
    events, rejected = read(tmp_path / "log.txt", event="rating")
    assert [(row["user_id"], row["event"]) for row in events] == [("u1", "rating"), ("u3", "rating")]
    assert [(row["row"], row["reason"], row["raw"]) for row in rejected] == [
        (2, "missing item_id", "lonely"), (3, "undecodable text", "u2 \ufffd"),
    ]  # fmt: skip


def test_batches_are_bounded_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.txt").write_text("".join(f"u{user} 1 2 3\n" for user in range(10)))
    whole = read(tmp_path / "log.txt")
    monkeypatch.setattr("distft.data.sources.sequences.source.BATCH_EVENTS", 5)
    source = Config(path=str(tmp_path / "log.txt")).open()
    sizes = [len(batch.events) for task in source.read_tasks() for batch in source.read(task)]
    assert sizes == [6] * 5
    assert read(tmp_path / "log.txt") == whole


def test_attributes_are_item_features_and_part_of_the_identity(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("u1 9 8\n")
    attributes = tmp_path / "attributes.json"
    attributes.write_text(json.dumps({"9": [4, "red"], "8": []}))
    source = Config(path=str(tmp_path / "log.txt"), attributes=str(attributes)).open()
    items = source.items()
    assert items is not None
    assert items.table.to_pylist() == [
        {"item_id": "9", "attributes": ["4", "red"]}, {"item_id": "8", "attributes": []},
    ]  # fmt: skip
    before = source.identity()
    attributes.write_text(json.dumps({"9": [5]}))
    assert source.identity() != before
    assert Config(path=str(tmp_path / "log.txt")).open().items() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[1]", "not a JSON object of items"), ('{"9": 4}', "has 4 as the attributes of item '9'")],
)
def test_attributes_of_another_form_are_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "log.txt").write_text("u1 9 8\n")
    (tmp_path / "attributes.json").write_text(text)
    source = Config(path=str(tmp_path / "log.txt"), attributes=str(tmp_path / "attributes.json")).open()
    with pytest.raises(DataError, match=message):
        source.items()
