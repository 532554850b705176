from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from distft.data import prepare as module
from distft.data.exchange import num_partitions
from distft.data.prepare import prepare
from distft.errors import DataError, LeakError
from distft.storage import Storage
from tests.data import logs

pytestmark = pytest.mark.ray


def write_logs(folder: Path) -> None:
    """The small log in three files, one of them empty but for its header."""
    records = logs.rows()
    half = len(records) // 2
    logs.write_csv(folder / "a.csv", records[:half])
    logs.write_csv(folder / "b.csv", [])
    logs.write_csv(folder / "c.csv", records[half:])


@pytest.mark.usefixtures("ray_session")
def test_ray_data_gives_the_bytes_of_one_process(tmp_path: Path) -> None:
    write_logs(tmp_path)
    calls: list[tuple[str, int, int]] = []
    stats = prepare(logs.job(tmp_path), Storage(tmp_path / "ray"), {}, lambda *call: calls.append(call))
    dataset, expected = logs.prepare_here(logs.job(tmp_path), tmp_path / "here", num_partitions(1))
    found = (Storage(tmp_path / "ray") / "dataset").verified("dataset")
    assert found.sha256 == dataset.verified("dataset").sha256
    assert stats == expected
    assert [phase for phase in dict.fromkeys(phase for phase, _, _ in calls)] == ["read", "clean", "count", "write"]
    assert calls[-1] == ("write", 64, 64)


@pytest.mark.usefixtures("ray_session")
def test_a_continued_vocabulary_gives_the_bytes_of_one_process(tmp_path: Path) -> None:
    logs.write_csv(tmp_path / "a.csv", logs.rows(num_items=12))
    logs.prepare_here(logs.job(tmp_path), tmp_path / "base")
    write_logs(tmp_path)
    wanted = logs.job(tmp_path, vocabulary={"from": f"{tmp_path}/base/dataset"})
    stats = prepare(wanted, Storage(tmp_path / "ray"), {})
    dataset, _ = logs.prepare_here(wanted, tmp_path / "here", num_partitions(1))
    assert (Storage(tmp_path / "ray") / "dataset").manifest("dataset") == dataset.manifest("dataset")
    assert stats["vocabulary"]["appended_rows"]["items"] > 5


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_groups", [1, 5, 64])
def test_the_number_of_tasks_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_groups: int) -> None:
    write_logs(tmp_path)
    prepare(logs.job(tmp_path), Storage(tmp_path / "first"), {})
    monkeypatch.setattr(module, "_groups", lambda weights, count: _deal(len(weights), num_groups))
    prepare(logs.job(tmp_path), Storage(tmp_path / "second"), {})
    manifests = [(Storage(tmp_path / name) / "dataset").manifest("dataset") for name in ("first", "second")]
    assert manifests[0] is not None
    assert manifests[0] == manifests[1]


def _deal(size: int, num_groups: int) -> list[list[int]]:
    dealt = [list(range(size))[start::num_groups] for start in range(num_groups)]
    return [group for group in dealt if group]


@pytest.mark.usefixtures("ray_session")
def test_mistakes_come_back_as_they_are_and_leave_nothing(tmp_path: Path) -> None:
    write_logs(tmp_path)
    parent = Storage(tmp_path / "run")
    with pytest.raises(LeakError, match="by: time"):
        prepare(logs.job(tmp_path, split={"by": "leave_one_out"}), parent, {})
    (tmp_path / "c.csv").write_bytes(b"user,item\0")
    with pytest.raises(DataError, match=r"c\.csv is not text: byte 9 is zero"):
        prepare(logs.job(tmp_path), parent, {})
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.usefixtures("ray_session")
def test_an_interrupt_leaves_the_old_dataset_and_no_staging(tmp_path: Path) -> None:
    write_logs(tmp_path)
    parent = Storage(tmp_path / "run")
    prepare(logs.job(tmp_path), parent, {})
    before = (parent / "dataset").manifest("dataset")

    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == "write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(logs.job(tmp_path, max_context=3), parent, {}, interrupt)
    time.sleep(1)  # stragglers must not bring the staging folder back
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["dataset"]
    assert (parent / "dataset").verified("dataset") == before
    assert threading.active_count() < 100


def test_groups_cover_all_in_order_and_balance() -> None:
    weights = [5, 1, 1, 1, 100, 1, 1, 50]
    groups = module._groups(weights, 3)
    assert [number for group in groups for number in group] == list(range(len(weights)))
    assert len(groups) == 3
    assert module._groups([0, 0], 8) == [[0], [1]]


def job_of(folder: Path, events: list[dict[str, Any]], **data: Any) -> Any:
    return logs.job(folder, events=events, **data)


def test_logs_with_and_without_clock_do_not_mix(tmp_path: Path) -> None:
    logs.write_csv(tmp_path / "a.csv", [["u", "i", "1600000000"]], ("user", "item", "when"))
    path, columns = str(tmp_path / "a.csv"), {"user_id": "user", "item_id": "item"}
    orderly = {"source": "files", "path": path, "columns": columns, "event": "purchase"}
    timed = orderly | {"columns": columns | {"timestamp": "when"}}
    with pytest.raises(DataError, match=r"Some of data\.events have timestamps"):
        prepare(job_of(tmp_path, [orderly, timed]), Storage(tmp_path / "run"), {})
    with pytest.raises(DataError, match="by time, but the log has no timestamps"):
        prepare(job_of(tmp_path, [orderly]), Storage(tmp_path / "run"), {})
