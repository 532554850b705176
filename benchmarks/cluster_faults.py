"""What a cluster of several nodes goes through and still ends as it should, and what faults cost it.

Run:  .venv/bin/python benchmarks/cluster_faults.py NAME [NAME ...]

A head and two nodes in network namespaces of their own (``cluster/local.py``: needs root), trained on through ``distft
submit`` with the job of ``tests/cluster/jobs.py``. NAME is one of

- ``zero3``: ZeRO-3 over both nodes, trained and evaluated
- ``elastic``: ``num_workers: [1, 2]``, a node lost and not replaced at once, so that one worker goes on, and then a new
  node, so that there are two again
- ``cut``: the cable of a node that trains is pulled for 20 s
- ``disk``: the disk of the storage is filled up during the checkpoints; then the job is submitted again
- ``goodput``: ``distft chaos`` kills a worker every 120 s for 30 minutes, with a checkpoint about every ten seconds;
  goodput as it reports it, and as it follows from the times in the journal (kept as ``cluster-NAME.csv``)
- ``goodput-10min``: the same for ten minutes
- ``jobs``: 200 jobs, ten at once: 190 times ``distft check`` and ten trainings

Each writes ``benchmarks/results/cluster-NAME.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for what the proofs of the cluster use too

from cluster.local import LocalCluster, local_cluster  # noqa: E402
from distft.storage import Storage  # noqa: E402
from distft.train.failure import read_failures  # noqa: E402
from distft.train.journal import read_lines  # noqa: E402
from tests.cluster.jobs import CPUS, JOB, Client, checkpoint, equal_weights, trains, until  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
CUT_S, KILL_EVERY_S, CHAOS_S, EVERY_STEPS = 20, 120, 1800, 200
NUM_JOBS, NUM_TRAININGS, AT_ONCE = 200, 10, 10
LIMIT_S, MANY_LIMIT_S = 400, 1800


def calm(client: Client, folder: Path) -> Path:
    """A run that nothing disturbed, made once."""
    storage = folder / "calm"
    if not storage.exists():
        storage.mkdir()
        client.submit(storage, follow=True)
    return storage


def empty(client: Client, folder: Path, name: str) -> Path:
    """A run on the same dataset that has not been trained."""
    storage = folder / name
    storage.mkdir(exist_ok=True)
    shutil.copytree(calm(client, folder) / "dataset", storage / "dataset")
    return storage


def ended(client: Client, id_: str) -> dict[str, Any]:
    """How a job ended."""
    told = client.ended(id_)
    return {"status": told["status"], "exit_code": told["exit_code"]}


def zero3(client: Client, folder: Path) -> dict[str, Any]:
    """ZeRO-3 over two nodes."""
    storage = empty(client, folder, "zero3")
    told = client.submit(storage, "train.zero.stage=3", follow=True)
    found = json.loads((storage / "report" / "metrics.json").read_text())["model"]
    return {"status": told["status"], "workers": checkpoint(storage)[1], "test_hr@10": found["hr@10"]}


def elastic(client: Client, folder: Path) -> dict[str, Any]:
    """From two workers to one and back."""
    storage, nodes = empty(client, folder, "elastic"), client.cluster
    id_ = client.submit(storage, "stages=[train]", "scaling.num_workers=[1, 2]", "train.epochs=60")["id"]
    until(lambda: checkpoint(storage)[0] >= 20 and checkpoint(storage)[1] == 2, "a checkpoint of two workers", LIMIT_S)
    nodes.remove(next(node for node in nodes.nodes if trains(node)))
    to_one_s = until(lambda: checkpoint(storage)[1] == 1, "a checkpoint of one worker", LIMIT_S)
    nodes.add_node()
    to_two_s = until(lambda: checkpoint(storage)[1] == 2, "a checkpoint of two workers again", LIMIT_S)
    return {
        "seconds_to_a_checkpoint_of_one": round(to_one_s, 1),
        "seconds_to_a_checkpoint_of_two": round(to_two_s, 1),
        **ended(client, id_),
    }


def cut(client: Client, folder: Path) -> dict[str, Any]:
    """A node that nobody can reach for a while."""
    storage, nodes = empty(client, folder, "cut"), client.cluster
    id_ = client.submit(storage, "stages=[train]")["id"]
    until(lambda: checkpoint(storage)[0] >= 20, "a checkpoint", LIMIT_S)
    struck = next(node for node in nodes.nodes if trains(node))
    nodes.cut(struck)
    time.sleep(CUT_S)
    nodes.mend(struck)
    before, began_s = checkpoint(storage)[0], time.monotonic()
    until(lambda: checkpoint(storage)[0] > before, "a checkpoint after it", LIMIT_S)
    stepping_s = time.monotonic() - began_s
    failures = read_failures(Storage(storage / "train"))  # which a training that ends well forgets
    told = ended(client, id_)
    return {
        "seconds_from_mended_to_a_new_checkpoint": round(stepping_s, 1),
        **told,
        "failures": [str(one.get("cause", one))[:300] for one in failures],
        "weights_as_undisturbed": equal_weights(storage, calm(client, folder)),
    }


def disk(client: Client, folder: Path) -> dict[str, Any]:
    """A disk that is full for a while."""
    place = folder / "small-disk"
    storage = place / "run"
    storage.mkdir()
    shutil.copytree(calm(client, folder) / "dataset", storage / "dataset")
    id_ = client.submit(storage, "stages=[train]")["id"]
    until(lambda: checkpoint(storage)[0] >= 20, "a checkpoint", LIMIT_S)
    with (place / "filler").open("wb") as filler:
        try:
            while True:
                filler.write(b"\0" * 65_536)
                filler.flush()
        except OSError:
            pass
    intact = checkpoint(storage)[0]
    told = ended(client, id_)
    said = client.run("jobs", "logs", id_)[2]
    kept = checkpoint(storage)[0]
    (place / "filler").unlink()
    again = client.submit(storage, "stages=[train]", follow=True)
    return {
        "first": told,
        "said": [line.strip() for line in said.splitlines() if "space" in line.lower()][:3],
        "checkpoint_before": intact,
        "checkpoint_that_stayed": kept,
        "submitted_again": again["status"],
        "weights_as_undisturbed": equal_weights(storage, calm(client, folder)),
    }


def goodput(client: Client, folder: Path, name: str = "goodput", for_s: int = CHAOS_S) -> dict[str, Any]:
    """Half an hour of kills."""
    storage = empty(client, folder, name)
    sets = ("stages=[train]", "train.epochs=4000", "scaling.max_failures=100", "train.validate.every_epochs=40")
    id_ = client.submit(storage, *sets, f"train.checkpoint.every_steps={EVERY_STEPS}")["id"]
    until(lambda: checkpoint(storage)[0] >= EVERY_STEPS, "a checkpoint", LIMIT_S)
    words = f"python -m distft chaos {storage}/train --kill worker --every {KILL_EVERY_S} --for {for_s} --json"
    chaos = client.jobs.submit_job(entrypoint=words)
    until(lambda: client.jobs.get_job_status(chaos).is_terminal(), "the end of chaos", for_s + 120)
    log = client.jobs.get_job_logs(chaos)
    report = json.loads(log[log.index("\n{") if "\n{" in log else log.index("{") :])
    client.run("jobs", "stop", id_)
    lines = list(read_lines(Storage(storage / "train")))
    with (RESULTS / f"cluster-{name}.csv").open("w") as file:
        file.write("kind,step,time_s\n")
        file.writelines(f"{line['kind']},{line['step']},{line['time_s']:.3f}\n" for line in lines)
    saved = [line["time_s"] for line in lines if line["kind"] == "train" and line["step"] % EVERY_STEPS == 0]
    return {
        "reported": report,
        "by_hand": by_hand(lines, report),
        "median_seconds_between_checkpoints": round(
            statistics.median(second - first for first, second in pairwise(saved)), 1
        ),
    }


def by_hand(lines: list[dict[str, Any]], report: dict[str, Any]) -> dict[str, Any]:
    """Goodput by the clock alone: from each line of the journal to the next is time spent on its steps.

    Unless a strike or a validation lies between them: then it is as long as that many steps took before it. What the
    lines say of the time of a step, which the report adds up, is not looked at.
    """
    lost_s = [strike["at_s"] for strike in report["strikes"]]
    lost_s += [line["time_s"] for line in lines if line["kind"] == "valid"]
    began_s, ended_s = report["began_s"], report["began_s"] + report["seconds"]
    spent_s, step_s, steps = 0.0, 0.0, 0
    for before, line in pairwise(line for line in lines if line["kind"] == "train"):
        taken, start_s, end_s = line["step"] - before["step"], before["time_s"], line["time_s"]
        if not any(start_s <= at_s < end_s for at_s in lost_s):
            step_s = (end_s - start_s) / taken
        else:
            start_s = end_s - taken * step_s
        share = max(0.0, min(end_s, ended_s) - max(start_s, began_s)) / (end_s - start_s)
        spent_s += share * taken * step_s
        steps += round(share * taken)
    return {"steps": steps, "goodput": round(spent_s / report["seconds"], 4)}


def jobs(client: Client, folder: Path) -> dict[str, Any]:
    """Many jobs, ten at once."""
    storages = [empty(client, folder, f"one-of-many-{number}") for number in range(NUM_TRAININGS)]
    every = NUM_JOBS // NUM_TRAININGS

    def one(number: int) -> str:
        if number % every == 0:
            id_ = client.submit(storages[number // every], *SMALL)["id"]
            until(lambda: client.jobs.get_job_status(id_).is_terminal(), "the end of a training", MANY_LIMIT_S)
            told = ended(client, id_)
            return f"training {told['status']} {told['exit_code']}"
        words = "python -m distft check job.yaml" if number % 2 else "python -m distft check no-such-job.yaml"
        id_ = client.jobs.submit_job(entrypoint=words, runtime_env={"working_dir": str(client.folder)})
        until(lambda: client.jobs.get_job_status(id_).is_terminal(), "the end of a check", MANY_LIMIT_S)
        wanted = "SUCCEEDED" if number % 2 else "FAILED"
        found = client.jobs.get_job_status(id_).value
        return f"check {'as it should' if found == wanted else found}"

    began_s = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as submitters:
        outcomes = Counter(submitters.map(one, range(NUM_JOBS)))
    return {"seconds": round(time.monotonic() - began_s, 1), "outcomes": dict(outcomes)}


SMALL = ("stages=[train]", "train.epochs=1", "scaling.num_workers=1")
CASES: dict[str, Callable[[Client, Path], dict[str, Any]]] = {
    "zero3": zero3,
    "elastic": elastic,
    "cut": cut,
    "disk": disk,
    "goodput": goodput,
    "goodput-10min": partial(goodput, name="goodput-10min", for_s=600),
    "jobs": jobs,
}


def left_behind(before: set[int]) -> dict[str, int]:
    """Processes of Ray that were not there before, namespaces and networks."""
    new = [one for one in psutil.process_iter(["cmdline"]) if one.pid not in before]
    ours = [one for one in new if any("ray" in word for word in (one.info["cmdline"] or [])[:2])]
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.splitlines()
    links = [name for name in os.listdir("/sys/class/net") if name.startswith(("distft", "dft"))]
    return {"processes": len(ours), "namespaces": len(spaces), "links": len(links)}


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own, mounted before the nodes start so that they see it."""
    place = folder / "small-disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def run(names: list[str]) -> None:
    """Runs these cases on one cluster each, and writes what they gave."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "client").mkdir()
        (folder / "client" / "job.yaml").write_text(JOB)
        with small_disk(folder):
            for case in names:
                before = {one.pid for one in psutil.process_iter()}
                with local_cluster(2, CPUS) as nodes:
                    found = measured(case, nodes, folder)
                time.sleep(1)
                found["left_behind"] = left_behind(before)
                text = json.dumps({"load_average": os.getloadavg()[0], **found}, indent=2) + "\n"
                (RESULTS / f"cluster-{case}.json").write_text(text)
                print(case, text, flush=True)


def measured(case: str, nodes: LocalCluster, folder: Path) -> dict[str, Any]:
    """One case, on a cluster that is up."""
    return CASES[case](Client(nodes, folder / "client"), folder)


def main() -> None:
    """Runs what the command line names."""
    names = sys.argv[1:]
    if not names or not set(names) <= CASES.keys():
        sys.exit(__doc__)
    run(names)


if __name__ == "__main__":
    main()
