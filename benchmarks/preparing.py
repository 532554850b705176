"""``distft prepare`` against the same work written directly in Polars and in pandas: time, memory, equal results.

Run:  .venv/bin/python benchmarks/preparing.py NAME...

NAME is ``compare`` (20 million events: distft, Polars and pandas, one after the other, whole processes from start to
end), ``grow`` (distft alone on 20 and on 100 million events), ``cpus`` (20 million events on one CPU and on two: the
same bytes?) or ``csv`` (the 20 million events as CSV, plain and gz). Logs are made beforehand in a temporary folder.

Ray's start-up is the time within ``ray.init``; it is taken off distft's seconds and told beside them. All else counts:
Python's start, the start of Ray's workers, its end, checksums, fsync. The comparison is void, and the script fails,
unless all three give the same rows. Memory is the peak of the summed PSS.

Adds to ``benchmarks/results/preparing.json``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from biglog import EVENTS, write_log
from path import RESULTS, ROOT, measured

from distft.storage import Storage

SIZES = {20: (20_000_000, 200_000, 50_000), 100: (100_000_000, 1_000_000, 50_000)}
COLUMNS = ("user_id", "item_id", "event", "timestamp", "value")
COMPARED = ["user_id", "part", "item_row", "event", "time_ms", "query", "value"]
TARGET = ["target_item", "target_event", "target_time_ms", "target_value"]
PREPARE_ON = """
import sys
from distft import cluster
from distft.data.prepare import prepare
from distft.jobfile import load_job
from distft.storage import Storage
with cluster.connect(num_cpus=int(sys.argv[3])):
    prepare(load_job(sys.argv[1], ()), Storage(sys.argv[2]), {})
"""


def job(path: Path) -> dict[str, Any]:
    events = {
        "source": "files", "path": str(path), "columns": {name: name for name in COLUMNS},
        "event_types": {name: name for name in EVENTS}, "timestamp_unit": "ms",
    }  # fmt: skip
    return {
        "name": "preparing",
        "storage": "runs/preparing",
        "stages": ["prepare"],
        "data": {
            "events": [events],
            "clean": {"min_user_events": 5, "min_item_events": 5},
            "target_events": ["purchase"],
            "split": {"by": "leave_one_out"},
        },
    }


def prepared(folder: Path, log: Path, out: Path) -> dict[str, Any]:
    """Seconds and memory of ``distft prepare`` of the files ``log`` (a glob) into ``<out>/dataset``."""
    job_file, seconds = folder / "job.yaml", folder / "init_s"
    job_file.write_text(json.dumps(job(log)))
    script = str(ROOT / "benchmarks/direct/timed_prepare.py")
    found = run([sys.executable, script, str(seconds), str(job_file), "--storage", str(out)])
    init_s = float(seconds.read_text())
    size_mb = sum(path.stat().st_size for path in (out / "dataset").rglob("*") if path.is_file()) / 1e6
    return {
        "seconds": round(found["seconds"] - init_s, 1), "ray_init_s": round(init_s, 1),
        "total_s": found["seconds"], "peak_pss_mb": found["peak_pss_mb"], "dataset_mb": round(size_mb),
    }  # fmt: skip


def run(command: list[str]) -> dict[str, Any]:
    found = measured(command)
    if found["exit_code"]:
        sys.exit(f"{found['command']} ended with {found['exit_code']}")
    return {name: found[name] for name in ("seconds", "peak_pss_mb")}


def compare(folder: Path) -> dict[str, Any]:
    log = folder / "log"
    write_log(log, *SIZES[20])
    result: dict[str, Any] = {"distft": prepared(folder, log / "*.parquet", folder / "distft")}
    for name in ("polars", "pandas"):
        script = str(ROOT / f"benchmarks/direct/with_{name}.py")
        result[name] = run([sys.executable, script, str(log), str(folder / name)])
        result[name]["same_rows_as_distft"] = same_rows(folder / "distft" / "dataset", folder / name)
    seconds = {name: result[name]["seconds"] for name in ("distft", "polars", "pandas")}
    result["distft_over_polars"] = round(seconds["distft"] / seconds["polars"], 2)
    result["total_over_polars"] = round(result["distft"]["total_s"] / seconds["polars"], 2)
    result["pandas_over_distft"] = round(seconds["pandas"] / seconds["distft"], 2)
    stats = json.loads((folder / "distft/dataset/stats.json").read_text())
    return result | {name: stats[name] for name in ("rows_in", "kept", "rejected", "filtered", "splits")}


def same_rows(dataset: Path, out: Path) -> dict[str, int]:
    """Rows of every split, after they were found the same, value for value."""
    rows = {}
    for split in ("train", "valid", "test"):
        columns = COMPARED + (TARGET if split != "train" else [])
        keys = ["user_id", "part"]
        ours = pl.read_parquet(dataset / split / "*.parquet", columns=columns).select(columns).sort(keys)
        theirs = pl.read_parquet(out / f"{split}.parquet", columns=columns).select(columns).sort(keys)
        for name in columns:
            if not ours[name].equals(theirs[name].cast(ours[name].dtype)):
                sys.exit(f"{out.name} gives another {name} in {split}: the comparison is void")
        rows[split] = len(ours)
    return rows


def grow(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for millions, size in SIZES.items():
        write_log(folder / f"log{millions}", *size)
        result[f"{millions}m"] = prepared(folder, folder / f"log{millions}" / "*.parquet", folder / f"run{millions}")
    result["growth_over_linear"] = round(result["100m"]["seconds"] / (5 * result["20m"]["seconds"]), 2)
    return result


def cpus(folder: Path) -> dict[str, Any]:
    log, job_file = folder / "log", folder / "job.yaml"
    write_log(log, *SIZES[20])
    job_file.write_text(json.dumps(job(log / "*.parquet")))
    result: dict[str, Any] = {}
    files = []
    for count in (1, 2):
        out = folder / f"on{count}"
        result[f"{count}_cpus"] = run([sys.executable, "-c", PREPARE_ON, str(job_file), str(out), str(count)])
        files.append(Storage(out / "dataset").verified("dataset").files)
    if files[0] != files[1]:
        sys.exit("the number of CPUs changes the bytes")
    return result | {"files_of_the_same_bytes": len(files[0])}


def csv(folder: Path) -> dict[str, Any]:
    log = folder / "log"
    write_log(log, *SIZES[20])
    result: dict[str, Any] = {}
    for ending in ("csv", "csv.gz"):
        texts = folder / ending
        texts.mkdir()
        for path in sorted(log.glob("*.parquet")):
            with pa.output_stream(str(texts / f"{path.stem}.{ending}"), compression="detect") as stream:
                pa_csv.write_csv(pq.read_table(path), stream)
        size_mb = sum(path.stat().st_size for path in texts.iterdir()) / 1e6
        result[ending] = prepared(folder, texts / f"*.{ending}", folder / f"run-{ending}") | {"log_mb": round(size_mb)}
    return result


def main() -> None:
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {"compare": compare, "grow": grow, "cpus": cpus, "csv": csv}
    for name in sys.argv[1:]:
        load = os.getloadavg()
        with tempfile.TemporaryDirectory(prefix="distft-preparing-") as folder:
            found = parts[name](Path(folder))
        found["machine"] = {"cpus": os.cpu_count(), "load_before": [round(one, 1) for one in load]}
        place = RESULTS / "preparing.json"
        results = json.loads(place.read_text()) if place.exists() else {}
        place.write_text(json.dumps(results | {name: found}, indent=2) + "\n")
        print(json.dumps(found, indent=2), flush=True)
    (RESULTS / "preparing.yaml").write_text(json.dumps(job(Path("log/*.parquet")), indent=2) + "\n")


if __name__ == "__main__":
    main()
