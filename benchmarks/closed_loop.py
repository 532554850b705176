"""The closed loop on a made-up shop whose customers change their minds: a day is served, learnt from, and promoted.

Run:  .venv/bin/python benchmarks/closed_loop.py [FOLDER]

Day 1 is the quickstart's shop without a tenth of its items; its model is trained and served by ``distft serve``. On day
2 the same customers have other tastes (``store_seed``) and all items are sold: the first half of the drifted log, told
to the service by ``POST /v1/events``. Then ``distft run jobs/nightly.yaml`` learns from the service's own log, and
deploys. Day 3 is the other half of the drifted log; every purchase in it is a target for both models. Then a poisoned
day: random events of as many customers, told the same way, and a second night, which the guard must refuse.

Everything lies below FOLDER (a temporary one). Writes ``benchmarks/results/closed-loop.json``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ranking import processor
from ruamel.yaml import YAML

from distft.promotions import read_record
from distft.serve.server import free_port
from distft.storage import Storage

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "closed-loop.json"
NUM_USERS = 3000
SHIFT_MS = 90 * 86_400_000
"""The drifted log begins where the first ends: both are 90 days long."""
AT_ONCE = 4
LOGGED_S = 12.0
"""Accepted events are in the log within ten seconds."""
FIELDS = ("event", "item_id", "timestamp", "query")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="distft-loop-") as scratch:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else scratch).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        result = {"command": "benchmarks/closed_loop.py", "processor": processor(), "num_users": NUM_USERS}
        result |= loop(folder)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def loop(folder: Path) -> dict[str, Any]:
    first, drifted = synthesized(folder, "first", 1), synthesized(folder, "drifted", 2)
    new = [f"i{number:06}" for number in range(9, 1000, 10)]
    sold = pc.invert(pc.is_in(first["item_id"], pa.array(new)))
    write(folder / "day1.parquet", first.filter(pc.fill_null(sold, True)))
    times = pc.add(drifted["timestamp"], SHIFT_MS)
    drifted = drifted.set_column(drifted.column_names.index("timestamp"), "timestamp", times)
    noon = np.median(times.to_numpy())
    day2, day3 = drifted.filter(pc.less(times, noon)), drifted.filter(pc.greater_equal(times, noon))
    write(folder / "day2.parquet", day2)
    write(folder / "day3.parquet", day3)

    distft("run", str(day1_job(folder)))
    state = folder / "day1" / "service"
    with served(folder / "day1" / "bundle") as url:
        tell(url, day2)
        night, night_s = nightly(folder, "night-2", state / "log" / "*.jsonl")
        assert night["deploy"], night
        running = read_record(Storage(state)).running
        assert running is not None and running.bundle == str(folder / "night-2" / "bundle")
        known = {file.name for file in (state / "log").iterdir()}
        tell(url, poison(day3))
        poisoned = folder / "poisoned"
        poisoned.mkdir(exist_ok=True)
        for file in (state / "log").iterdir():
            if file.name not in known:
                (poisoned / file.name).write_bytes(file.read_bytes())
        refused, _ = nightly(folder, "night-3", poisoned / "*.jsonl", code=3)
        still = httpx.get(f"{url}/readyz", timeout=30).json()["model_version"]
        assert still == running.version
    # Judged last: nobody's choice depends on it.
    metrics = judged(folder)
    model, before = metrics["model"], metrics["against"]["metrics"]
    return {
        "new_items": len(new),
        "events_of_day_2": len(day2),
        "targets_of_day_3": metrics["num_targets"],
        "ndcg@10_of_the_nightly_model": model["ndcg@10"],
        "ndcg@10_of_the_model_of_day_1": before["ndcg@10"],
        "ratio": round(model["ndcg@10"] / before["ndcg@10"], 3),
        "difference": metrics["against"]["differences"]["ndcg@10"],
        "seconds_of_the_night": round(night_s, 1),
        "promoted_with": night["deploy"]["checks"],
        "poisoned_day": {"refused": refused["message"], "checks": refused.get("failure", {}).get("checks")},
    }


def distft(*words: str, code: int = 0) -> dict[str, Any]:
    """The JSON object that a command ends with."""
    command = [sys.executable, "-m", "distft", *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr}"
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


def synthesized(folder: Path, name: str, store_seed: int) -> pa.Table:
    """The log of a store, and beside it the catalogue, which both stores share."""
    job = YAML().load((ROOT / "jobs" / "quickstart.yaml").read_text())
    job["data"]["events"][0] |= {"num_users": NUM_USERS, "store_seed": store_seed}
    file = folder / f"{name}.yaml"
    YAML().dump(job, file)
    command = [sys.executable, "-m", "distft", "data", "synth", str(file), "--out", str(folder / name)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return pq.read_table(sorted((folder / name / "events").glob("*.parquet")))


def write(file: Path, log: pa.Table) -> None:
    pq.write_table(log, file)


def section(folder: Path, *files: str) -> dict[str, Any]:
    """The section data that reads logs, with the catalogue."""
    data = YAML().load((ROOT / "jobs" / "nightly.yaml").read_text())["data"]
    columns = {name: name for name in ("user_id", *FIELDS)}
    data["events"] = [
        {"source": "files", "path": str(folder / file), "columns": columns, "timestamp_unit": "ms"} for file in files
    ]
    data["items"]["path"] = str(folder / "first" / "items" / "items.parquet")
    del data["vocabulary"]
    return dict(data)


def day1_job(folder: Path) -> Path:
    """The quickstart on the first day's files; the service begins with the histories that it was trained on."""
    job = YAML().load((ROOT / "jobs" / "quickstart.yaml").read_text())
    job |= {"name": "day1", "storage": str(folder / "day1"), "data": section(folder, "day1.parquet")}
    job["data"]["clean"] = {"min_user_events": 5, "min_item_events": 5}
    job["scaling"] = {"num_workers": 1}
    job["serve"] = {"max_replicas": 1, "export_histories": True}
    YAML().dump(job, folder / "day1.yaml")
    return folder / "day1.yaml"


def nightly(folder: Path, name: str, log: Path, code: int = 0) -> tuple[dict[str, Any], float]:
    """What a night said, and its seconds; the job is the shipped one, on this folder."""
    state, began_s = folder / "day1" / "service", time.monotonic()
    changes = {
        "data.events": json.dumps([section(folder, str(log))["events"][0]]),
        "data.items.path": folder / "first" / "items" / "items.parquet",
        "data.vocabulary.from": state,
        "finetune.from": state,
        "deploy.state": state,
    }
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    told = distft("run", "jobs/nightly.yaml", "--storage", str(folder / name), *words, code=code)
    return told, time.monotonic() - began_s


def judged(folder: Path) -> dict[str, Any]:
    """Both models on every purchase of day 3, with what came before it on days 2 and 3 as history."""
    job = YAML().load((ROOT / "jobs" / "nightly.yaml").read_text())
    day3 = pq.read_table(folder / "day3.parquet")["timestamp"].to_numpy()
    last = day3.max()
    days = float(last - day3.min()) / 86_400_000
    data = section(folder, "day2.parquet", "day3.parquet")
    data |= {"split": {"by": "time", "valid_days": 0.001, "test_days": days}}
    data["vocabulary"] = {"from": str(folder / "night-2" / "bundle")}
    job |= {"name": "day3", "storage": str(folder / "day3"), "data": data, "stages": ["prepare", "evaluate"]}
    for key in ("finetune", "deploy"):
        del job[key]
    quickstart = YAML().load((ROOT / "jobs" / "quickstart.yaml").read_text())
    job |= {key: quickstart[key] for key in ("model", "loss")}
    YAML().dump(job, folder / "day3.yaml")
    distft("prepare", str(folder / "day3.yaml"))
    bundles = [str(folder / name / "bundle") for name in ("night-2", "day1")]
    return distft("evaluate", str(folder / "day3.yaml"), "--from", bundles[0], "--against", bundles[1])


def poison(log: pa.Table) -> pa.Table:
    """As many events of the same customers at the same times, of items that nobody chose."""
    rng = np.random.default_rng(1)
    items = pa.array([f"i{number:06}" for number in rng.integers(1000, size=len(log))])
    events = pa.array(rng.choice(["view", "cart", "purchase"], size=len(log), p=[0.6, 0.1, 0.3]))
    return pa.table({"user_id": log["user_id"], "item_id": items, "event": events, "timestamp": log["timestamp"]})


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "distft", "serve", str(bundle), "--no-auth", "--port", str(port), "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def tell(url: str, log: pa.Table) -> None:
    """What users did, by ``POST /v1/events``, each user's events in order."""
    of_users: dict[str, list[dict[str, Any]]] = {}
    for row in log.select([name for name in ("user_id", *FIELDS) if name in log.column_names]).to_pylist():
        user = row.pop("user_id")
        of_users.setdefault(user, []).append({key: value for key, value in row.items() if value is not None})
    with httpx.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(AT_ONCE) as pool:

        def one(user: str) -> None:
            for attempt in range(5):
                answer = http.post("/v1/events", json={"user_id": user, "events": of_users[user]})
                if answer.status_code < 500:
                    break
                time.sleep(attempt + 1)
            assert answer.is_success, answer.text

        list(pool.map(one, of_users))
    time.sleep(LOGGED_S)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
