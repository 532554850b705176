"""A forgotten user is in no file of the dataset, and everything else is as it was."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distft.data.encode import Encoder
from distft.data.forget import Forgotten, forget
from distft.data.parquet import read_table
from distft.data.shards import TargetReader, TrainReader, split_files
from distft.errors import DataError
from distft.job import Job
from distft.report.data import render
from distft.schema import SPLITS
from distft.storage import Storage
from tests.data import logs
from tests.data.test_pseudonyms import name_of, shop_job, texts, write_shop

USER = name_of("u3")


def prepared(folder: Path, **data: Any) -> tuple[Job, Storage]:
    folder.mkdir(exist_ok=True)
    write_shop(folder)
    job = shop_job(folder, pseudonyms=None, **data)
    logs.prepare_here(job, folder / "run")
    return job, Storage(folder / "run")


def files(root: Storage, split: str) -> list[str]:
    return split_files((root / "dataset").verified("dataset"), split)


def dropped(job: Job, root: Storage, user: str = USER) -> Forgotten:
    return forget(root, user, functools.partial(render, job.data))


def rows(root: Storage, split: str) -> list[dict[str, Any]]:
    dataset = root / "dataset"
    return [row for name in files(root, split) for row in read_table(dataset, name).to_pylist()]


def test_no_file_holds_the_user_and_all_others_are_as_they_were(tmp_path: Path) -> None:
    job, root = prepared(tmp_path)
    before = {split: rows(root, split) for split in SPLITS}
    old = Encoder.of_dataset(root / "dataset")
    users = read_table(root / "dataset", "users.parquet").to_pylist()
    kept_file = next(
        name for name in files(root, "train") if USER not in read_table(root / "dataset", name)["user_id"].to_pylist()
    )
    inode = (root.path / "dataset" / kept_file).stat().st_ino
    found = dropped(job, root)
    dataset = root / "dataset"
    manifest = dataset.verified("dataset")
    assert found.rows["train"] >= 1 and found.rejected >= 2 and manifest.info["forgotten"] == 1
    assert (root.path / "dataset" / kept_file).stat().st_ino == inode
    for path in dataset.path.rglob("*"):
        if path.is_file():
            assert not any(re.search(r"Q\W+3(?!\d)", text) for text in texts(path)), path  # not of user 30
    for split in SPLITS:
        theirs = [row for row in before[split] if row["user_id"] == USER]
        assert rows(root, split) == [row for row in before[split] if row["user_id"] != USER]
        assert len(theirs) == found.rows[split]
        assert sum(len(row["item_row"]) for row in theirs) == found.events[split]
    new = Encoder.of_dataset(dataset)
    assert new.identity == old.identity
    trained = [row for row in before["train"] if row["user_id"] == USER]
    pairs = [pair for row in trained for pair in zip(row["item_row"], row["event"], strict=True)]
    targets = [item for item, event in pairs if event in old.target_codes.tolist() and item > 1]
    assert np.array_equal(old.counts - new.counts, np.bincount(targets, minlength=old.num_items))
    number = trained[0]["user_row"]
    blanked = read_table(dataset, "users.parquet").to_pylist()
    assert len(blanked) == len(users) and [row for row in blanked if row["user_row"] != number] == [
        row for row in users if row["user_row"] != number
    ]
    assert TargetReader(dataset, "test").num_rows == len(rows(root, "test"))
    ranks: dict[str, Any] = {"rank": 0, "world_size": 1, "num_streams": 4}
    reader = TrainReader(dataset, seed=1, batch_size=8, windows="last", max_history=9, **ranks)
    seen = {int(row) for step in range(reader.steps_per_epoch) for row in reader.step_rows(0, step).user_row}
    assert seen and number not in seen


def test_a_user_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    job, root = prepared(tmp_path)
    before = (root / "dataset").read_bytes("manifest.json")
    with pytest.raises(DataError, match="holds nothing of the user 'nobody'"):
        dropped(job, root, "nobody")
    assert (root / "dataset").read_bytes("manifest.json") == before
    assert [path.name for path in root.path.iterdir()] == ["dataset"]
    dropped(job, root)
    with pytest.raises(DataError, match="holds nothing"):
        dropped(job, root)
    assert dropped(job, root, name_of("u4")).rows["train"]
    assert (root / "dataset").verified("dataset").info["forgotten"] == 2
