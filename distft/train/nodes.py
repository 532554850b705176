"""Calls on the node of a process, which may be stopped or gone: how it is, and its end.

Enters: the id of a Ray node. Leaves: answers, None where the node does not give one in time. Surprising choice: tasks
that ask for no CPU, since the workers that are asked about hold them all.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NODE_TASK_S = 8.0
"""How long a node is given to answer; a fresh process on it takes about two seconds."""


def state_then_kill(pid: int) -> str:
    """How a process of this node is that does not answer; it is ended, which Ray might not bring about."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
            state = stream.read().rsplit(")", 1)[1].split()[0]
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return "it is gone"
    words = {"T": "it was stopped (SIGSTOP)", "t": "a debugger holds it", "D": "it waits for a device"}
    return words.get(state, "it hangs in native code")


def started(node_id: str, function: Callable[..., Any], *args: Any) -> Any:
    """A call of the function on a node, begun."""
    there_only = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there_only)(function)
    return task.remote(*args)


def outcome(begun: Any) -> Any:
    """What the call returned; None if the node does not answer in time."""
    try:
        return ray.get(begun, timeout=NODE_TASK_S)
    except (ray.exceptions.RayError, TimeoutError):
        return None
