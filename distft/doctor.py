"""Is this machine, and the cluster, fit to run distft? Every node is asked, and the answers are compared.

Enters: a storage or none; the cluster that ``RAY_ADDRESS`` names, else this machine alone, with a Ray of its own,
which shows that Ray starts. Leaves: findings, each with what to do about it. No compiler is looked for: nothing of
distft needs one. Surprising choice: the storage is judged by marks that every node leaves and every node looks for,
because a folder of the same name on each machine's own disk passes any test that one machine can make.
"""

from __future__ import annotations

import errno
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from distft import cluster
from distft.checkup import SHARED_MEMORY, checkup, marking, marks_seen, versions

GB = 1e9
MAX_SKEW_S = 1.0
MAX_LOOKUP_S = 1.0
SHARED_MEMORY_SHARE = 0.3
"""Of a machine's memory Ray takes so much for its object store, in shared memory."""
LEAST_DISK_GB, LOW_DISK_GB = 1.0, 10.0
SERVE_PORT = 8000
TRY_FROM_HEAD = "Run 'distft doctor' on the head, with its dashboard on: only there it is seen who is let in."

State = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at: on which node (or "cluster"), what was found, and what to do if it is not ``ok``."""

    node: str
    what: str
    state: State
    found: str
    remedy: str = ""


def examine(storage: str | None = None, port: int = SERVE_PORT) -> list[Finding]:
    """All findings. Raises RunError where no Ray can be reached or started."""
    with cluster.connect():
        nodes = cluster.nodes()
        with marking(storage) as mark:
            answers = _ask(nodes, storage, mark)
            seen = {} if storage is None else cluster.on_each(nodes, marks_seen, dict.fromkeys(nodes, (storage, mark)))
        findings = [*_entrance(), _port(port)]
    for name, answer in answers.items():
        findings += [_unanswered(name, answer)] if isinstance(answer, str) else _judged(name, answer, nodes[name])
    findings += _storage(storage, answers, seen)
    return findings


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings, and the worst of their states."""
    states = {finding.state for finding in findings}
    worst = next(state for state in ("error", "warning", "ok") if state in states)
    return {"state": worst, "findings": [asdict(finding) for finding in findings]}


# -- asking ------------------------------------------------------------------------------------------------


def _ask(nodes: Mapping[str, Mapping[str, Any]], storage: str | None, mark: str) -> dict[str, dict[str, Any] | str]:
    """The checkup of each node, with ``skew_s``; a text where it gave none."""
    began_s = time.time()
    asked = {name: (storage, mark, str(node["NodeID"]), node["NodeManagerAddress"]) for name, node in nodes.items()}
    answers = cluster.on_each(nodes, checkup, asked)
    ended_s = time.time()
    for answer in answers.values():
        if isinstance(answer, dict):
            # Its clock was read between the two: what lies outside of them is certainly skew.
            answer["skew_s"] = max(0.0, began_s - answer["clock_s"], answer["clock_s"] - ended_s)
    return answers


# -- judging -----------------------------------------------------------------------------------------------


def _unanswered(name: str, why: str) -> Finding:
    if "No module named" in why:
        return Finding(
            name, "distft", "error", f"is not installed there: {why}", "Install the same distft on every node."
        )
    return Finding(name, "answers", "error", why, "Look at the node's logs (ray logs), or take it out of the cluster.")


def _judged(name: str, answer: Mapping[str, Any], node: Mapping[str, Any]) -> Iterator[Finding]:
    yield _versions(name, answer["versions"])
    yield _skew(name, answer["skew_s"])
    yield _names(name, answer["lookup_s"])
    yield _shared_memory(name, answer)
    free_gb, path = answer["disk"]["free_bytes"] / GB, answer["disk"]["path"]
    state: State = "error" if free_gb < LEAST_DISK_GB else "warning" if free_gb < LOW_DISK_GB else "ok"
    remedy = "Free some space: Ray spills objects and keeps its logs there." if state != "ok" else ""
    yield Finding(name, "disk", state, f"{free_gb:.1f} GB free in {path}", remedy)
    yield _gpus(name, answer["gpu"], int(node["Resources"].get("GPU", 0)))


def _versions(name: str, there: Mapping[str, str | None]) -> Finding:
    here = versions()
    others = [
        f"{one} {there[one] or 'missing'} (here {here[one] or 'missing'})" for one in here if there[one] != here[one]
    ]
    if others:
        return Finding(
            name, "versions", "error", ", ".join(others), "Use one image, or one constraints file, everywhere."
        )
    return Finding(
        name, "versions", "ok", ", ".join(f"{one} {there[one]}" for one in ("distft", "ray", "torch", "python"))
    )


def _skew(name: str, skew_s: float) -> Finding:
    if skew_s > MAX_SKEW_S:
        remedy = "Let NTP (chrony, systemd-timesyncd) set the node's clock: logs and time-outs are compared by it."
        return Finding(name, "clock", "warning", f"{skew_s:.1f} s off", remedy)
    return Finding(name, "clock", "ok", f"within {MAX_SKEW_S:.0f} s of this machine's")


def _names(name: str, lookup_s: float) -> Finding:
    found = f"the name of a node's address is looked up in {lookup_s:.1f} s"
    if lookup_s > MAX_LOOKUP_S:
        remedy = "Mend the name server in /etc/resolv.conf, or name one that refuses: a training's start waits for it."
        return Finding(name, "names", "warning", found, remedy)
    return Finding(name, "names", "ok", found)


def _shared_memory(name: str, answer: Mapping[str, Any]) -> Finding:
    shared, memory = answer["shared_memory_bytes"], answer["memory_bytes"]
    found = f"{shared / GB:.1f} GB in {SHARED_MEMORY}, {memory / GB:.1f} GB of memory"
    if shared >= SHARED_MEMORY_SHARE * memory:
        return Finding(name, "shared memory", "ok", found)
    size = f"{SHARED_MEMORY_SHARE * memory / GB:.0f}g"
    remedy = f"Start containers with --shm-size={size}; on Kubernetes mount an emptyDir of medium Memory there."
    return Finding(name, "shared memory", "warning", f"{found}: Ray's objects go to the disk", remedy)


def _gpus(name: str, gpu: Mapping[str, Any], expected: int) -> Finding:
    devices = gpu["devices"]
    found = f"{len(devices)} ({', '.join(sorted(set(devices)))}), NCCL {gpu['nccl']}" if devices else "none"
    if len(devices) < expected:
        found = f"the cluster counts {expected}, torch sees {len(devices)}"
        remedy = (
            "Install a torch with CUDA that the driver knows." if gpu["driver"] else "Install NVIDIA's driver there."
        )
        return Finding(name, "GPUs", "error", found, remedy)
    if gpu["driver"] and not devices:
        return Finding(
            name, "GPUs", "warning", "the machine has NVIDIA's driver, torch sees no GPU", "Install a torch with CUDA."
        )
    if len(devices) > expected:
        return Finding(
            name,
            "GPUs",
            "warning",
            f"{found}; the cluster counts {expected}",
            f"Start Ray with --num-gpus={len(devices)}.",
        )
    return Finding(name, "GPUs", "ok", found)


def _storage(
    storage: str | None, answers: Mapping[str, dict[str, Any] | str], seen: Mapping[str, list[str] | str]
) -> Iterator[Finding]:
    if storage is None:
        return
    wrote = {name: answer["not_written"] for name, answer in answers.items() if isinstance(answer, dict)}
    num_written = sum(reason is None for reason in wrote.values())
    for name, reason in wrote.items():
        found = seen[name]
        if reason is not None:
            yield Finding(name, "storage", "error", reason, "Give the nodes' user the right to write there.")
        elif isinstance(found, str):
            yield Finding(name, "storage", "error", found, "Give the nodes' user the right to read there.")
        elif len(found) < num_written:
            text = f"{storage}: {num_written} nodes wrote there, {name} finds {len(found)} of their files"
            yield Finding(name, "storage", "error", text, "Use a folder that all nodes share (NFS), or s3:// or gs://.")
        else:
            yield Finding(name, "storage", "ok", f"{storage}: written, and all {num_written} nodes' files read")


# -- this machine, and the way in ---------------------------------------------------------------------------


def _entrance() -> Iterator[Finding]:
    """Whether the cluster's dashboard lets somebody in who has no token."""
    import ray

    if not cluster.is_remote():
        yield Finding("cluster", "token", "ok", "a Ray of this process's own, with a token made for it")
        return
    url = str(ray._private.worker.global_worker.node.webui_url or "")
    if not url:
        yield Finding("cluster", "token", "warning", "the cluster has no dashboard that could be asked", TRY_FROM_HEAD)
        return
    try:
        with urllib.request.urlopen(f"http://{url}/api/version", timeout=10) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except OSError as error:
        yield Finding(
            "cluster", "token", "warning", f"http://{url} cannot be reached from here: {error}", TRY_FROM_HEAD
        )
        return
    if status in (401, 403):
        yield Finding("cluster", "token", "ok", f"http://{url} refuses whoever has none ({status})")
        return
    remedy = (
        "Start every node with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN: now anybody who reaches it runs code."
    )
    yield Finding("cluster", "token", "error", f"http://{url} lets in whoever has none ({status})", remedy)


def _port(port: int) -> Finding:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            why = "is taken" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
            return Finding("this machine", f"port {port}", "warning", why, "Give 'distft serve' another --port.")
    return Finding("this machine", f"port {port}", "ok", "free for 'distft serve'")
