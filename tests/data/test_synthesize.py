from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distft.data.synthesize import as_yaml, synthesize
from distft.errors import StorageError, UsageError
from distft.job import Job
from distft.jobfile import parse_job

SHOP = {"source": "synthetic", "num_users": 150}


def job(*events: dict) -> Job:
    return Job(name="shop", storage="runs/shop", data={"events": events or (SHOP,)})


def events_of(section) -> pa.Table:
    source = section.open()
    table = pa.concat_tables(batch.events for task in source.read_tasks() for batch in source.read(task))
    return table.set_column(3, "event", table["event"].cast(pa.string())).combine_chunks()


def written(section: dict) -> Job:
    return parse_job(f"name: files\nstorage: runs/files\n{as_yaml(section)}", "job.yaml")


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_the_printed_section_reads_the_same_events_and_items(tmp_path, format):
    steps = []
    reading = written(synthesize(job(), tmp_path / "a shop", format, lambda *step: steps.append(step)))
    assert events_of(reading.data.events[0]).equals(events_of(job().data.events[0]))
    assert reading.data.events[0].event_names() == ("view", "cart", "purchase", "search")
    assert steps[-1][1] == steps[-1][2] == len(steps)
    assert reading.data.items.text == ("title",) and reading.data.items.numeric == ("price",)
    assert (tmp_path / "a shop" / "items" / f"items.{format}").is_file()


def test_a_second_run_replaces_the_first_whole(tmp_path):
    synthesize(job(), tmp_path, "csv")
    section = synthesize(job({**SHOP, "num_users": 20}), tmp_path, "parquet")
    assert sorted(path.name for path in (tmp_path / "events").iterdir()) == ["manifest.json", "part-00000.parquet"]
    assert pq.read_table(tmp_path / "items" / "items.parquet").num_rows == 1000
    assert len(set(events_of(written(section).data.events[0])["user_id"].to_pylist())) == 20


def test_somebody_s_files_are_not_replaced(tmp_path):
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "log.csv").write_text("mine")
    with pytest.raises(StorageError, match=r"events holds files that are not a synthetic log.*--out"):
        synthesize(job(), tmp_path)
    assert (tmp_path / "events" / "log.csv").read_text() == "mine"


def test_a_job_without_a_synthetic_source_and_an_unknown_format_are_told(tmp_path):
    files = {"source": "files", "path": "log.csv", "columns": {"user_id": "u", "item_id": "i"}, "event": "purchase"}
    with pytest.raises(UsageError, match=r"Job shop has no synthetic source: its data\.events are files"):
        synthesize(job(files), tmp_path / "out")
    with pytest.raises(UsageError, match=r"--format jsonl is unknown.*csv or parquet"):
        synthesize(job(), tmp_path / "out", "jsonl")
    assert not (tmp_path / "out").exists()
