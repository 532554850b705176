"""A new model on real requests, before or while it answers some of them.

Enters: requests that the running model was asked. Leaves: what the new one made of them, in a ``TrialLog``. Surprising
choice: as a shadow the new model is asked after the client has its answer, so that a slow or broken one costs nobody
anything; as a canary it answers, and where it fails the running model does, so that nobody sees that either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Kind = Literal["shadow", "canary"]
TRIALS = "distft-trials"
"""Ray's namespace of the logs."""
AT_ONCE = 16
"""Requests that are mirrored at a time; in a crowd not all are."""


@dataclass(frozen=True)
class Trial:
    """``application``: the new model's. ``share`` of the requests goes there. ``log``: name of the ``TrialLog``.

    ``until_s`` (since 1970): it ends then at the latest, also where the promotion was killed meanwhile.
    """

    kind: Kind
    application: str
    share: float
    log: str
    until_s: float


@dataclass
class TrialLog:
    """What came of a trial, from all processes of the interface. Ray runs it as an actor."""

    asked: int = 0
    failed: int = 0
    took_s: list[float] = field(default_factory=list)
    running_took_s: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)

    def answered(self, took_s: float, running_took_s: float | None = None, overlap: float | None = None) -> None:
        """Notes an answer of the new model; beside it the running model's time, and how many items both name."""
        self.asked += 1
        self.took_s.append(took_s)
        if running_took_s is not None:
            self.running_took_s.append(running_took_s)
        if overlap is not None:
            self.overlap.append(overlap)

    def failure(self) -> None:
        """Notes a request that the new model did not answer."""
        self.asked += 1
        self.failed += 1

    def summary(self) -> dict[str, Any]:
        """Counts, seconds (95%), and the mean share of items that both lists have."""
        return {
            "asked": self.asked,
            "failed": self.failed,
            "p95_s": _p95(self.took_s),
            "running_p95_s": _p95(self.running_took_s),
            "overlap": float(np.mean(self.overlap)) if self.overlap else None,
        }


def overlap(new: Sequence[str], running: Sequence[str]) -> float:
    """Share of the running model's items that the new one names too; 1 where there are none."""
    return len(set(new) & set(running)) / len(running) if running else 1.0


def _p95(took_s: Sequence[float]) -> float | None:
    return float(np.percentile(took_s, 95)) if took_s else None
