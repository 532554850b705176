"""How fast every user gets a list: ``distft recommend``, against one process that does the same without Ray.

Run:  .venv/bin/python benchmarks/batch.py [USERS]

A million users with 50 events each, 50,000 items, an untrained model of 64 dimensions (``served_shop.py``), k = 20. The
process without Ray has one thread and encodes, multiplies and selects for the users of the first file, with the same
code, before and after; it writes nothing. The command runs on all cores; ``users_per_s`` counts the start of Ray too.
Then it is run in another folder, killed when a third of the parts are there, and run once more to its end: users that
came twice or are missing are counted. Writes ``benchmarks/results/batch.json``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ranking import processor
from served_shop import EVENTS, HISTORY, START_MS, write_shop

from distft.data.histories import FOLDER, SCHEMA
from distft.data.parquet import read_table, write_table
from distft.recommend.scoring import BatchScorer
from distft.serve.predictor import Predictor
from distft.storage import Storage

RESULTS = Path(__file__).parent / "results" / "batch.json"
NUM_ITEMS = 50_000
FILE_USERS = 62_500
K = 20


def main() -> None:
    users = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="distft-bench-") as folder:
        bundle = write_shop(Storage(folder), NUM_ITEMS)
        histories = Storage(folder) / FOLDER
        write_users(histories, users)
        before = alone(bundle, histories)
        whole = batch(bundle, histories, Path(folder) / "whole")
        after = alone(bundle, histories)
        killed = batch(bundle, histories, Path(folder) / "killed", kill_at=whole["parts"] // 3)
    per_core = whole["users_per_s"] / (os.cpu_count() or 1)
    result = {
        "command": f"benchmarks/batch.py {users}",
        "processor": processor(),
        "load_before": round(load, 2),
        "users": users,
        "items": NUM_ITEMS,
        "k": K,
        "one_process_users_per_s": [before, after],
        "whole": whole,
        "share_per_core": round(per_core / ((before + after) / 2), 3),
        "killed_and_restarted": killed,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def write_users(place: Storage, users: int) -> None:
    """Files of histories with events of random items."""
    place.make()
    rng = np.random.default_rng(3)
    items = pa.array([f"item-{index:07}" for index in range(NUM_ITEMS)])
    for first in range(0, users, FILE_USERS):
        count = min(FILE_USERS, users - first)
        size = count * HISTORY
        offsets = pa.array(np.arange(0, size + 1, HISTORY, dtype=np.int32))
        times = START_MS + np.tile(np.arange(HISTORY) * 60_000, count)
        columns = [
            items.take(pa.array(rng.integers(0, NUM_ITEMS, size))),
            pa.array(EVENTS).take(pa.array(rng.integers(0, len(EVENTS), size))),
            pa.array(times, pa.int64()),
            pa.nulls(size, pa.string()),
            pa.nulls(size, pa.float32()),
        ]
        ids = pa.array([f"user-{user:08}" for user in range(first, first + count)])
        lists = [pa.ListArray.from_arrays(offsets, column) for column in columns]
        write_table(place, f"users-{first:08}.parquet", pa.table([ids, *lists], schema=SCHEMA))


def alone(bundle: Storage, histories: Storage) -> float:
    """Users a second of one thread of this process."""
    torch.set_num_threads(1)
    scorer = BatchScorer(Predictor.load(bundle, verify=False), K)
    table = read_table(histories, histories.list()[0])
    scorer.lists(table.slice(0, 2_000))  # warm
    started_s = time.perf_counter()
    scorer.lists(table)
    return round(len(table) / (time.perf_counter() - started_s), 1)


def batch(bundle: Storage, histories: Storage, out: Path, kill_at: int | None = None) -> dict[str, Any]:
    """The command, perhaps killed once before: its seconds, users a second, and a count of users."""
    words = ["recommend", bundle.uri, "--histories", histories.uri, "--out", str(out), "-k", str(K), "--json"]
    command = [sys.executable, "-m", "distft", *words]
    lists, facts = out / "lists", dict[str, Any]()
    if kill_at is not None:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while len(list(lists.glob("part-*.parquet"))) < kill_at:
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.1)
            os.kill(process.pid, signal.SIGKILL)
        facts["parts_when_killed"] = len(list(lists.glob("part-*.parquet")))
        time.sleep(10)  # until Ray's processes have noticed
    started_s, started_at = time.perf_counter(), time.time()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    facts["seconds"] = round(time.perf_counter() - started_s, 1)
    told = json.loads(done.stdout.splitlines()[-1])
    written = sorted(
        path.stat().st_mtime for path in lists.glob("part-*.parquet") if path.stat().st_mtime >= started_at
    )
    names = [
        name for path in lists.glob("*.parquet") for name in pq.read_table(path, columns=["user_id"])[0].to_pylist()
    ]
    facts |= {"parts": told["parts"], "scored": told["scored_now"]}
    facts |= {"users_twice": len(names) - len(set(names)), "users_missing": told["users"] - len(set(names))}
    # The first parts end when Ray is up and every actor has done one; the others are a steady pace.
    cores = os.cpu_count() or 1
    steady = told["scored_now"] / max(1, len(written)) * (len(written) - cores)
    facts["users_per_s"] = round(told["scored_now"] / facts["seconds"], 1)
    facts["users_per_s_once_started"] = round(steady / (written[-1] - written[cores - 1]), 1)
    return facts


if __name__ == "__main__":
    main()
