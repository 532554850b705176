"""One user with a million events among ordinary ones: prepared whole, in order, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distft.data.parquet import read_table
from distft.data.shards import split_files
from distft.data.tasks import MAX_ROW_EVENTS
from distft.storage import Storage

pytestmark = pytest.mark.proof

NUM_EVENTS = 1_000_000
MAX_BYTES = 1_500_000_000
COLUMNS = {name: name for name in ("user_id", "item_id", "event", "timestamp")}
RUN = """
import json, resource, sys
from pathlib import Path
from tests.data import logs
logs.prepare_here(logs.Job.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]))
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_log(path: Path) -> None:
    rng = np.random.default_rng(5)
    user = np.where(rng.random(NUM_EVENTS + 20_000) < 20_000 / NUM_EVENTS, rng.integers(1, 200, NUM_EVENTS + 20_000), 0)
    numbers = np.arange(len(user))
    table = {
        "user_id": pa.array([f"u{number}" for number in user.tolist()]),
        "item_id": pa.array([f"i{number}" for number in rng.integers(0, 3000, len(user)).tolist()]),
        "event": pa.array(np.where(numbers % 5 == 0, "purchase", "view").astype(object)),
        "timestamp": pa.array(1_600_000_000_000 + numbers * 1000),
    }
    pq.write_table(pa.table(table), path)


@pytest.mark.parametrize(
    "split", [{"by": "leave_one_out"}, {"by": "time", "valid_days": 0.01, "test_days": 0.01}], ids=["last", "time"]
)
def test_a_user_with_a_million_events(tmp_path: Path, split: dict[str, Any]) -> None:
    write_log(tmp_path / "log.parquet")
    events = {"source": "files", "path": str(tmp_path / "log.parquet"), "columns": COLUMNS}
    data = {"events": [events], "target_events": ["purchase"], "split": split}
    job = {"name": "whale", "storage": str(tmp_path / "run"), "data": data}
    command = [sys.executable, "-c", RUN, json.dumps(job), str(tmp_path / "run")]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(found.stdout) < MAX_BYTES
    dataset = Storage(tmp_path / "run" / "dataset")
    manifest = dataset.verified("dataset")
    rows = {
        name: pa.concat_tables([read_table(dataset, file) for file in split_files(manifest, name)]).to_pylist()
        for name in ("train", "valid", "test")
    }
    parts = sorted((row for row in rows["train"] if row["user_id"] == "u0"), key=lambda row: row["part"])
    assert [row["part"] for row in parts] == list(range(len(parts)))
    assert {len(row["time_ms"]) for row in parts[:-1]} == {MAX_ROW_EVENTS}
    times = np.concatenate([row["time_ms"] for row in parts])
    assert len(times) > 0.97 * NUM_EVENTS
    assert (np.diff(times) > 0).all()
    for name in ("valid", "test"):
        histories = [row for row in rows[name] if row["user_id"] == "u0"]
        assert histories
        assert all(len(row["time_ms"]) == 1000 and row["time_ms"][-1] < row["target_time_ms"] for row in histories)
