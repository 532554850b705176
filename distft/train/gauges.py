"""A training's figures as Prometheus metrics, through the endpoint that every Ray node has.

Enters: lines of metrics.jsonl. Leaves: gauges named ``ray_distft_train_*``, labelled with job and stage. Surprising
choice: the driver sets them, not the workers: they are figures of the whole run, and outlive a restart of the workers.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge

from distft.train.following import Ending, Line, Observer

TRAIN = {
    "step": "optimiser steps taken",
    "total_steps": "optimiser steps of all epochs",
    "epoch": "number of the epoch, from 1",
    "loss": "mean loss of a target",
    "learning_rate": "learning rate of the latest step",
    "tokens_per_s": "positions trained on in a second, over all workers",
    "data_wait_share": "share of the time in which training waited for its input",
}
"""Keys of a training line that become gauges, each with what it says."""
RUNNING, METRIC, RESTARTS = "distft_train_running", "distft_train_validation", "distft_train_restarts"
_TAGS = ("job", "stage")


def gauge_name(key: str) -> str:
    """The gauge's name, to which Ray puts ``ray_``."""
    return f"distft_train_{key}"


class Gauges(Observer):
    """The gauges of one training."""

    def __init__(self, job: str, stage: str) -> None:
        self._tags = {"job": job, "stage": stage}
        self._gauges = {key: Gauge(gauge_name(key), description=text, tag_keys=_TAGS) for key, text in TRAIN.items()}
        self._running = Gauge(RUNNING, description="1 while the training runs", tag_keys=_TAGS)
        self._metric = Gauge(METRIC, description="metrics of the latest validation", tag_keys=(*_TAGS, "metric"))
        self._restarts = Counter(RESTARTS, description="times that the workers were started again", tag_keys=_TAGS)

    def begin(self, known: Sequence[Line]) -> None:
        self._running.set(1, tags=self._tags)
        for kind in ("train", "valid"):
            self.see([line for line in known if line["kind"] == kind][-1:])

    def see(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if line["kind"] == "train":
                for key, gauge in self._gauges.items():
                    gauge.set(line[key], tags=self._tags)
            elif line["kind"] == "valid":
                for name, value in line.items():
                    if "@" in name or name == "loss":
                        self._metric.set(value, tags={**self._tags, "metric": name})

    def restarted(self) -> None:
        """Counts one restart of the workers."""
        self._restarts.inc(tags=self._tags)

    def end(self, ending: Ending, journal: Sequence[Line]) -> None:
        self._running.set(0, tags=self._tags)
