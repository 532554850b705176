"""Batch scoring by Ray Data: every user once, whatever was there before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from distft.cli.main import app
from distft.data.parquet import write_table
from distft.errors import ArtefactError, DataError, UsageError
from distft.recommend import recommend as batch
from distft.recommend.recommend import Task, Wanted, recommend
from distft.recommend.scoring import BatchScorer
from distft.serve.predictor import Predictor
from distft.storage import Storage
from tests.recommend.made import table, users, write_files

SIZES = (130, 1, 75)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "PART_USERS", 50)


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "lists").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.mark.usefixtures("ray_session", "small_parts")
def test_every_user_gets_the_list_of_the_model_once(bundle: Storage, predictor: Predictor, tmp_path: Path) -> None:
    everybody = write_files(Storage(tmp_path / "histories"), SIZES)
    seen: list[int] = []
    wanted, out = Wanted(k=6), Storage(tmp_path / "out")
    histories = Storage(tmp_path / "histories")
    told = recommend(
        Task.of(bundle, histories, wanted), out, progress=lambda _, done, of: seen.append(done * 1000 + of)
    )
    assert (told["users"], told["scored_now"], told["parts"]) == (206, 206, 6)
    assert seen == sorted(seen) and seen[-1] == 206 * 1000 + 206
    expected = BatchScorer(predictor, 6).lists(table(everybody)).to_pylist()
    found = rows(tmp_path / "out")
    assert [row["user_id"] for row in found] == list(everybody)
    for one, other in zip(found, expected, strict=True):
        assert one["item_id"] == other["item_id"] and one["source"] == other["source"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    manifest = (out / "lists").verified("recommendations")
    assert sum(facts["rows"] for facts in manifest.files.values()) == 206

    # What is there is not done again; what is lost is, and nothing else.
    again = recommend(Task.of(bundle, histories, wanted), out)
    assert (again["users"], again["scored_now"]) == (206, 0)
    for name in ("manifest.json", "part-000001.parquet", "part-000003.parquet"):
        (out / "lists").delete(name)
    rest = recommend(Task.of(bundle, histories, wanted), out)
    assert rest["scored_now"] == 50 + 1
    assert rows(tmp_path / "out") == found

    for changed, what in (
        (Wanted(k=5), "another k"),
        (Wanted(k=6, deny=("i1",)), "another deny"),
        (Wanted(k=6, exclude_seen="none"), "another exclude_seen"),
    ):
        with pytest.raises(UsageError, match=what):
            recommend(Task.of(bundle, histories, changed), out)
    assert rows(tmp_path / "out") == found
    forced = recommend(Task.of(bundle, histories, Wanted(k=5)), out, force=True)
    assert forced["scored_now"] == 206
    assert {len(row["item_id"]) for row in rows(tmp_path / "out")} == {5}
    write_table(histories, "file-3.parquet", table(users(500, 3)))
    with pytest.raises(UsageError, match="another histories"):
        recommend(Task.of(bundle, histories, Wanted(k=5)), out)


@pytest.mark.usefixtures("ray_session")
def test_what_a_worker_cannot_follow_is_told_with_its_remedy(bundle: Storage, tmp_path: Path) -> None:
    histories = Storage(tmp_path / "histories")
    histories.make()
    whole = table(users(0, 9))
    lacking = whole.set_column(1, "item_id", pa.array([[None] * len(row) for row in whole["event"].to_pylist()]))
    write_table(histories, "a.parquet", lacking)
    with pytest.raises(DataError, match="has no item_id"):
        recommend(Task.of(bundle, histories, Wanted()), Storage(tmp_path / "out"))
    write_table(histories, "a.parquet", whole)
    assert recommend(Task.of(bundle, histories, Wanted()), Storage(tmp_path / "out"), force=True)["users"] == 9


def refused(*words: str) -> str:
    done = CliRunner().invoke(app, ["recommend", *words])
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


def test_what_cannot_be_is_refused_before_anybody_is_scored(bundle: Storage, tmp_path: Path) -> None:
    histories, out = tmp_path / "histories", ["--out", str(tmp_path / "out")]
    write_files(Storage(histories), (3,))
    place = ["--histories", str(histories)]
    cases: Sequence[tuple[list[str], str]] = [
        ([str(tmp_path / "nothing"), *place], "There is no bundle"),
        ([bundle.uri, *out], "There are no histories"),
        ([bundle.uri, *place, *out, "-k", "0"], "-k is 0. Expected 1 to 50"),
        ([bundle.uri, *place, *out, "-k", "51"], "-k is 51. Expected 1 to 50"),
        ([bundle.uri, *place, *out, "--exclude-seen", "some"], "Expected all or targets or none"),
        ([bundle.uri, *place, *out, "--deny", str(tmp_path / "none.txt")], "deny-list"),
        ([bundle.uri, *place, "--out", ""], "--out is ''"),
    ]
    for words, message in cases:
        assert message in refused(*words)
    assert not (tmp_path / "out" / "lists").exists()


def test_files_that_are_no_histories_are_named(bundle: Storage, tmp_path: Path) -> None:
    histories = Storage(tmp_path / "histories")
    write_files(histories, (3,))
    write_table(histories, "zz.parquet", pa.table({"user_id": ["a"], "sku": ["b"]}))
    with pytest.raises(UsageError, match=r"zz.parquet has no column item_id, event"):
        recommend(Task.of(bundle, histories, Wanted()), Storage(tmp_path / "out"))
    histories.write_bytes("zz.parquet", b"PAR1 but not at all")
    with pytest.raises(ArtefactError, match=r"zz.parquet cannot be read"):
        recommend(Task.of(bundle, histories, Wanted()), Storage(tmp_path / "other"))


@pytest.mark.usefixtures("ray_session")
def test_the_command_writes_beside_the_bundle_and_tells_what_it_did(bundle: Storage, tmp_path: Path) -> None:
    write_files(Storage(tmp_path / "histories"), (40,))
    words = ["--histories", str(tmp_path / "histories"), "--out", str(tmp_path / "out"), "-k", "4", "--json"]
    done = CliRunner().invoke(app, ["recommend", bundle.uri, *words])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["users"], told["scored_now"], told["k"]) == (40, 40, 4)
    assert told["lists"] == str(tmp_path / "out" / "lists") and len(rows(tmp_path / "out")) == 40
