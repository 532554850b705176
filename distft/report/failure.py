"""Tells of a training that failed: one page, as text for the terminal and as a self-contained HTML file.

Enters: the failure as a JSON value, what is committed, and the command that was given. Leaves: text. No script and no
outside resource, like the other pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from distft import __version__

REMEDIES = {
    "stall": "If that part of the work may take longer on this cluster, raise scaling.stall_timeout_s. A rank that "
    "stands in one line for ever has a defect there; a process that was stopped was stopped by somebody.",
    "killed": "Ask the machine's log (dmesg, journalctl) who killed the process; a crash in native code is in the "
    "rank's log below.",
    "out of memory": "Lower train.max_tokens_per_micro_batch or train.batch_size, raise train.zero.stage, set "
    "train.zero.offload to cpu, or use fewer workers a machine.",
    "node lost": "Bring the node back or add another one; scaling.num_workers: [min, max] goes on with what is left.",
    "preempted": "Add another node; scaling.num_workers: [min, max] goes on with what is left.",
    "disk full": "Free space where the storage is; what was committed is intact.",
    "not finite": "The same command would meet it again. Lower train.learning_rate, set train.clip_norm or "
    "train.warmup_steps, or use precision fp32 or bf16.",
    "damaged": "Restore the file from a copy, or make what it belongs to again.",
    "exception": "The rank's log below has the trace.",
    "not started": "See whether the cluster has the nodes, and room on them (ray status).",
}


def rows(failure: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the page's table; the values that are not known are left out."""
    rank = "all alike" if failure["rank"] is None else str(failure["rank"])
    place = f"step {failure['step']}, in: {failure['phase']}" if failure["phase"] else ""
    process = f"{failure['pid']} on {failure['node']}" if failure["pid"] else ""
    followed = ", ".join(map(str, failure["followed"]))
    found = [
        ("first failing rank", f"{rank} of {failure['num_workers']}" if failure["num_workers"] else rank),
        ("likely cause", failure["cause"]),
        ("process", process),
        ("last seen at", place),
        ("the attempt had reached", f"step {failure['reached']}" if failure["reached"] else ""),
        ("failed because that one went", f"ranks {followed}" if followed else ""),
        ("failed attempts before", str(len(failure["before"])) if failure["before"] else ""),
        ("last checkpoint", failure["checkpoint"] or "none yet"),
        ("log of the rank", failure["log"]),
        ("when", failure["at"]),
    ]
    return [(name, value) for name, value in found if value]


def text(failure: Mapping[str, Any]) -> str:
    """The page for the terminal; the sentence that says what happened stands above it already."""
    shown = rows(failure)
    width = max(len(name) for name, _ in shown)
    lines = [f"  {name:<{width}}  {value}" for name, value in shown]
    return "\n".join([*lines, f"  {'resume':<{width}}  {failure['resume']}"])


def render(name: str, stage: str, failure: Mapping[str, Any]) -> str:
    """The page as HTML."""
    environment = Environment(loader=PackageLoader("distft", "report"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("failure.html").render(
        name=name,
        stage=stage,
        failure=failure,
        rows=rows(failure),
        remedy=REMEDIES.get(failure["cause"], ""),
        version=__version__,
    )
