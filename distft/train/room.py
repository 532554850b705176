"""Whether a cluster has room for a training: before it starts, and while it runs.

Enters: the job's ``scaling`` and the nodes that are alive. Leaves: a refusal of what would wait for ever, or a word to
the person whose training waits. Surprising choice: what else runs on the nodes is not counted. It may end; a node that
is not there may never come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.exceptions

from distft.errors import UsageError
from distft.job import Scaling
from distft.train.following import Line, Observer

POLL_S, PATIENCE_S = 5.0, 30.0
"""How often the cluster is looked at, and how long a node may be away before a person is told."""


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _needs(scaling: Scaling, use_gpu: bool) -> dict[str, float]:
    return {"CPU": scaling.cpus_per_worker, **({"GPU": 1.0} if use_gpu else {})}


def _fitting(nodes: Sequence[dict[str, float]], needs: dict[str, float]) -> int:
    """How many workers the nodes could hold, if nothing else ran there."""
    return sum(int(min(node.get(name, 0) / need for name, need in needs.items()) + 1e-9) for node in nodes)


def check_room(scaling: Scaling, use_gpu: bool) -> None:
    """Raises UsageError for a job that this cluster could never run."""
    nodes, needs = _nodes(), _needs(scaling, use_gpu)
    fitting, wanted = _fitting(nodes, needs), scaling.worker_range[0]
    if fitting >= wanted:
        return
    each = " and ".join(f"{need:g} {name}" for name, need in needs.items())
    have = " and ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}" for name in needs)
    if fitting:
        remedy = f"Set scaling.num_workers to {fitting}."
    elif not any(node.get("GPU", 0) for node in nodes) and use_gpu:
        remedy = "Set scaling.use_gpu to auto or false, or use a cluster with GPUs."
    else:
        remedy = "Lower scaling.cpus_per_worker."
    what = f"{wanted} workers of {each} each do not fit on this cluster of {have}"
    raise UsageError(what, f"at most {fitting} workers", remedy)


class Room(Observer):
    """Tells once that nodes were lost and the workers do not fit any more: Ray Train then waits, however long."""

    def __init__(self, scaling: Scaling, use_gpu: bool, show: Callable[[dict[str, Any]], None]) -> None:
        self._needs, self._wanted, self._show = _needs(scaling, use_gpu), scaling.worker_range[0], show
        self._step, self._looked_s, self._short_s = 0, time.monotonic(), 0.0
        self._told = False

    def see(self, lines: Sequence[Line]) -> None:
        self._step = int(lines[-1]["step"]) if lines else self._step
        now_s = time.monotonic()
        if now_s - self._looked_s < POLL_S:
            return
        try:
            fitting = _fitting(_nodes(), self._needs)
        except ray.exceptions.RayError:
            return  # the head does not answer, of which Ray Train will tell
        self._short_s = self._short_s + now_s - self._looked_s if fitting < self._wanted else 0.0
        self._looked_s = now_s
        if self._short_s >= PATIENCE_S and not self._told:
            message = (
                f"The cluster has lost nodes: {fitting} of {self._wanted} workers fit on what is left. Waiting for "
                "more. To go on with fewer, end this with Ctrl-C, lower scaling.num_workers and give the same command"
            )
            self._show({"kind": "warning", "step": self._step, "message": message})
        self._told = self._short_s >= PATIENCE_S
