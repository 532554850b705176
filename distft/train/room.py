"""Whether a cluster has room for a training: before it starts, and while it runs.

Enters: the job's ``scaling`` and the nodes that are alive. Leaves: a refusal of what would wait for ever, or a word to
the person whose training waits. Surprising choice: what else runs on the nodes is not counted. It may end; a node that
is not there may never come.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ruamel.yaml import YAML

from distft import cluster
from distft.errors import UsageError
from distft.sections.train import Scaling
from distft.train.following import Line, Observer

POLL_S, PATIENCE_S = 5.0, 30.0
"""How often the cluster is looked at, and how long a node may be away before a person is told."""


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _to_come() -> list[dict[str, float]] | None:
    """Nodes that an autoscaler may add; none without one, None where it is not known what it may add.

    ``ray up`` leaves its configuration in the home folder of the head, where drivers run. On Kubernetes the operator
    has it, and does not tell.
    """
    if not cluster.is_remote():
        return []
    if "KUBERAY_GEN_RAY_START_CMD" in os.environ:
        return None
    launched = Path.home() / "ray_bootstrap_config.yaml"
    if not launched.exists():
        return []
    return planned_nodes(YAML(typ="safe").load(launched.read_text()))


def planned_nodes(launcher: dict[str, Any]) -> list[dict[str, float]] | None:
    """Resources of each node that a cluster launcher's configuration allows; None where it leaves that to the cloud."""
    kinds = launcher.get("available_node_types") or {}
    nodes: list[dict[str, float]] = []
    for name, kind in kinds.items():
        if name == launcher.get("head_node_type"):
            continue
        if not kind.get("resources"):
            return None
        nodes += [kind["resources"]] * int(kind.get("max_workers", launcher.get("max_workers", 2)))
    return nodes


def has_gpus() -> bool:
    """True if a node has a GPU, or one may come that does."""
    return any(node.get("GPU", 0) >= 1 for node in [*_nodes(), *(_to_come() or [])])


def fixed_nodes() -> list[dict[str, float]] | None:
    """Resources of every node that is alive; None where an autoscaler may bring others."""
    return _nodes() if _to_come() == [] else None


def _needs(scaling: Scaling, use_gpu: bool) -> dict[str, float]:
    return {"CPU": scaling.cpus_per_worker, **({"GPU": 1.0} if use_gpu else {})}


def _fitting(nodes: Sequence[dict[str, float]], needs: dict[str, float]) -> int:
    """How many workers the nodes could hold, if nothing else ran there."""
    return sum(int(min(node.get(name, 0) / need for name, need in needs.items()) + 1e-9) for node in nodes)


def num_fitting(scaling: Scaling, use_gpu: bool) -> int:
    """How many workers of this kind the cluster could hold, if nothing else ran there."""
    return _fitting(_nodes(), _needs(scaling, use_gpu))


def check_room(scaling: Scaling, use_gpu: bool, key: str = "scaling.num_workers") -> None:
    """Raises UsageError for a job that this cluster could never run; ``key`` is the one that says how many workers."""
    nodes, needs = _nodes(), _needs(scaling, use_gpu)
    fitting, wanted = _fitting(nodes, needs), scaling.worker_range[0]
    if fitting >= wanted:
        return
    more = _to_come()
    if more is None or _fitting(more, needs) >= wanted:
        return
    if more:
        nodes, fitting = more, _fitting(more, needs)
    each = " and ".join(f"{need:g} {name}" for name, need in needs.items())
    have = " and ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}" for name in needs)
    if fitting:
        remedy = f"Set {key} to {fitting}."
    elif not any(node.get("GPU", 0) for node in nodes) and use_gpu:
        remedy = "Set scaling.use_gpu to auto or false, or use a cluster with GPUs."
    else:
        remedy = "Lower scaling.cpus_per_worker."
    what = f"{wanted} workers of {each} each do not fit on this cluster of {have}"
    raise UsageError(what, f"at most {fitting} workers", remedy)


class Room(Observer):
    """Tells once that the workers do not fit on the nodes, which were lost or have not come: Ray Train waits."""

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
                f"{fitting} of {self._wanted} workers fit on the nodes that the cluster has now. Waiting for more. To "
                "go on with fewer, end this with Ctrl-C, lower scaling.num_workers and give the same command"
            )
            self._show({"kind": "warning", "step": self._step, "message": message})
        self._told = self._short_s >= PATIENCE_S
