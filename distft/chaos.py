"""Kills parts of a cluster on a schedule, and tells what a training and a service got done all the same.

Enters: the folder of a training that runs on the cluster of the environment, what to kill and how often; the address of
a service, if one is to be asked meanwhile. Leaves: a report. For development: it kills in earnest. Surprising choice:
goodput is added up from the journal, which a resumed training cuts back to the step it goes on from: what stands there
was done once and counts, and all other time was lost.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distft import cluster
from distft.errors import ArtefactError, UsageError
from distft.storage import Storage
from distft.train.failure import read_failures
from distft.train.journal import read_lines

KINDS = ("worker", "node", "gcs", "replica")
TITLES = {"worker": "ray::RayTrainWorker", "replica": "ray::ServeReplica:model-"}
"""How Ray names the processes of a training's workers, and of the replicas that hold a model."""
POLL_S, ASK_S, STRIKE_TIMEOUT_S = 0.25, 0.1, 20.0


@dataclass(frozen=True)
class Schedule:
    """What is killed in turn, how often, and for how long. ``seed``: of the choice among several."""

    kinds: Sequence[str]
    every_s: float
    for_s: float
    seed: int = 0


@dataclass
class Strike:
    """One kill. ``*_s``: seconds after it; None for what has not happened.

    ``noticed_s``: the failure was written down; ``stepping_s``: the first step that was kept began; ``regained_s``: the
    training stood where it had been. ``step``: the last that it had told of; ``resumed``: the one that it went on from.
    """

    kind: str
    node: str
    pid: int
    at_s: float
    step: int = 0
    resumed: int | None = None
    noticed_s: float | None = None
    stepping_s: float | None = None
    regained_s: float | None = None


@dataclass
class Asked:
    """What requests to a service came to."""

    requests: int = 0
    failed: list[str] = field(default_factory=list)


def disturb(
    folder: Storage,
    schedule: Schedule,
    tell: Callable[[str], None] = print,
    service: tuple[str, str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Kills by the schedule while the training in ``folder`` runs; the report.

    ``service``: (address, API key, request) that is sent all the while. Raises UsageError outside of a cluster,
    ArtefactError where nothing trains.
    """
    unknown = [kind for kind in schedule.kinds if kind not in KINDS]
    if unknown or not schedule.kinds:
        raise UsageError(f"--kill names {', '.join(unknown) or 'nothing'}", f"some of {', '.join(KINDS)}")
    if not cluster.is_remote():
        raise UsageError(
            "There is no cluster to disturb",
            "RAY_ADDRESS, as a submitted job has it",
            "Submit it: ray job submit -- python -m distft chaos FOLDER ...",
        )
    if not (folder.exists("manifest.json") and _last(folder)):
        raise ArtefactError(f"No training has taken a step in {folder}", "the folder train/ of one that runs")
    with cluster.connect(), _asking(service) as asked:
        strikes, window = _watch(folder, schedule, tell)
    return {**goodput(list(read_lines(folder)), *window), **_told(strikes), **_served(asked)}


def goodput(lines: Sequence[dict[str, Any]], began_s: float, ended_s: float) -> dict[str, Any]:
    """Share of a time (Unix, s) that was spent on steps that were kept, from the lines of the journal.

    A line tells of the steps since the line before, and of the mean time of each. Goodput as in Google's "ML
    Productivity Goodput" (2024), with validation and checkpoints that hold the training up counted as lost.
    """
    spent_s, steps, before = 0.0, 0, 0
    for line in lines:
        if line["kind"] != "train":
            continue
        taken, before = line["step"] - before, line["step"]
        took_s = taken * line["step_s"]
        first_s = line["time_s"] - took_s
        inside_s = max(0.0, min(line["time_s"], ended_s) - max(first_s, began_s))
        spent_s += inside_s
        steps += round(taken * inside_s / took_s) if took_s else 0
    whole_s = max(1e-9, ended_s - began_s)
    seconds = {"began_s": round(began_s, 3), "seconds": round(whole_s, 1)}
    return {**seconds, "goodput": round(spent_s / whole_s, 4), "steps_kept": steps}


# -- the schedule ------------------------------------------------------------------------------------------


def _watch(
    folder: Storage, schedule: Schedule, tell: Callable[[str], None]
) -> tuple[list[Strike], tuple[float, float]]:
    """The strikes, and the time in which they fell: (began, ended)."""
    began_s, strikes, failures = time.time(), list[Strike](), 0
    due_s, draw = began_s + schedule.every_s, random.Random(schedule.seed)
    while (now_s := time.time()) < began_s + schedule.for_s and not _finished(folder):
        if now_s >= due_s:
            due_s += schedule.every_s
            failures = len(read_failures(folder))
            strike = _strike(schedule.kinds[len(strikes) % len(schedule.kinds)], draw)
            if strike is not None:
                strike.step = _last(folder)  # finding a process to kill takes a second, in which the training goes on
                strikes.append(strike)
                tell(f"{strike.kind} killed: process {strike.pid} on {strike.node}, at step {strike.step}")
        if strikes:
            _follow(strikes[-1], folder, failures)
        time.sleep(POLL_S)
    return strikes, (began_s, time.time())


def _follow(strike: Strike, folder: Storage, failures: int) -> None:
    """Notes how far the training has got over it."""
    after_s = time.time() - strike.at_s
    if strike.noticed_s is None and len(read_failures(folder)) > failures:
        strike.noticed_s = round(after_s, 2)
    if strike.regained_s is not None or strike.noticed_s is None:
        return
    before = 0
    for line in read_lines(folder):
        if line["kind"] != "train":
            continue
        if line["time_s"] > strike.at_s + strike.noticed_s:
            if strike.stepping_s is None:
                strike.resumed = before
                began_s = line["time_s"] - (line["step"] - before) * line["step_s"]
                strike.stepping_s = round(began_s - strike.at_s, 2)
            if line["step"] >= strike.step:
                strike.regained_s = round(line["time_s"] - strike.at_s, 2)
                return
        before = line["step"]


def _finished(folder: Storage) -> bool:
    manifest = folder.manifest("train")
    return manifest is not None and manifest.info.get("status") == "finished"


def _last(folder: Storage) -> int:
    """The last step that the journal knows of."""
    return max((line["step"] for line in read_lines(folder)), default=0)


# -- the kills ---------------------------------------------------------------------------------------------


def _strike(kind: str, draw: random.Random) -> Strike | None:
    """Kills one of this kind; None where there is none at the moment."""
    import ray

    nodes = cluster.nodes()
    heads = {name for name, node in nodes.items() if "node:__internal_head__" in node["Resources"]}
    session = str(ray._private.worker.global_worker.node.session_name)
    seen = cluster.on_each(nodes, targets, {name: (session,) for name in nodes}, STRIKE_TIMEOUT_S)
    found = [(name, pid) for name, there in seen.items() if isinstance(there, dict) for pid in there.get(kind, ())]
    if kind in ("node", "gcs"):  # of nodes those that train; the GCS is the head's
        found = [(name, pid) for name, pid in found if (name in heads) == (kind == "gcs")]
    if not found:
        return None
    name, pid = draw.choice(sorted(found))
    strike = Strike(kind, name, pid, time.time())
    cluster.on_each({name: nodes[name]}, end, {name: (pid,)}, 2.0)
    return strike


def targets(session: str) -> dict[str, list[int]]:
    """Processes of this node by kind of strike; runs on each. ``node`` is there only where something trains.

    The children of this process's parent, the raylet: another node of the same machine has another one.
    """
    raylet, found = os.getppid(), {kind: list[int]() for kind in KINDS}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError, IndexError, ValueError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if "gcs_server" in words.split("\0")[0] and session in words:
                found["gcs"].append(int(entry.name))
            for kind, title in TITLES.items():
                if parent == raylet and words.startswith(title):
                    found[kind].append(int(entry.name))
    found["node"] = [raylet] if found["worker"] else []
    return found


def end(pid: int) -> None:
    """SIGKILL; runs on the node of the process."""
    os.kill(pid, signal.SIGKILL)


# -- the report --------------------------------------------------------------------------------------------


def _told(strikes: Sequence[Strike]) -> dict[str, Any]:
    lost = [strike.step - strike.resumed for strike in strikes if strike.resumed is not None]
    return {
        "kills": len(strikes),
        "steps_lost": sum(lost),
        "replayed": sum(strike.regained_s is not None for strike in strikes),
        "phases_s": {
            "until noticed": _mean(strike.noticed_s for strike in strikes),
            "until it steps again": _mean(_between(strike.noticed_s, strike.stepping_s) for strike in strikes),
            "until it is where it was": _mean(_between(strike.stepping_s, strike.regained_s) for strike in strikes),
        },
        "strikes": [asdict(strike) for strike in strikes],
    }


def _between(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else second - first


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 2) if known else None


def _served(asked: Asked | None) -> dict[str, Any]:
    if asked is None:
        return {}
    return {"requests": asked.requests, "requests_failed": len(asked.failed), "request_failures": asked.failed[:10]}


@contextmanager
def _asking(service: tuple[str, str, dict[str, Any]] | None) -> Iterator[Asked | None]:
    """Sends a request again and again while the block runs."""
    if service is None:
        yield None
        return
    url, key, body = service
    asked, over = Asked(), threading.Event()
    headers = {"content-type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/recommend", json.dumps(body).encode(), headers)

    def ask() -> None:
        while not over.wait(ASK_S):
            asked.requests += 1
            try:
                urllib.request.urlopen(request, timeout=30).close()
            except OSError as error:
                asked.failed.append(str(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()
