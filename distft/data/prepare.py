"""Event logs → ``<storage>/dataset/``: the phases of ``phases.py``, their tasks run by Ray Data.

Surprising choice: Ray Data's own shuffles are not used: on per-user lists they are four to ten times slower than
partitioning once by hash and passing the partitions through storage, which bounds the memory and works on several
nodes alike. How many tasks run at once, and where, changes no byte of the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray
import ray.data
import ray.exceptions

from distft.cluster import quiet_data
from distft.data.exchange import num_partitions
from distft.data.phases import Phases, Task
from distft.data.settle import settle
from distft.data.tasks import Context
from distft.errors import DistftError, RunError, revived
from distft.schema import SPLITS
from distft.storage import Storage

if TYPE_CHECKING:
    from distft.job import Job

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total) whenever some work of a phase is done."""

TASK_BYTES = 1 << 28
"""Small read tasks and partitions share a Ray task up to this size, while all CPUs have some."""


def prepare(job: Job, parent: Storage, made_from: dict[str, Any], progress: Progress | None = None) -> dict[str, Any]:
    """Writes ``<parent>/dataset/`` and gives its ``stats.json``. Ray must be up. Raises DataError and LeakError."""
    sources = [config.open() for config in job.data.events]
    start, tables = settle(job, sources)
    reads = [(number, task) for number, source in enumerate(sources) for task in source.read_tasks()]
    num_bytes = sum(task.num_bytes for _, task in reads)
    with parent.replacing("dataset") as staging, quiet_data():
        context = Context(job, staging, start.event_names, num_partitions(num_bytes))
        for folder in ("work", "rejected", *SPLITS):
            (staging / folder).make()
        runner = RayData(num_bytes, progress)
        return Phases(context, start, tables, runner.each).run(reads, made_from)


class RayData:
    """Runs the tasks of a phase as one execution of Ray Data, several calls a Ray task."""

    def __init__(self, num_bytes: int, progress: Progress | None) -> None:
        self._num_bytes, self._progress = num_bytes, progress

    def each(
        self, phase: str, task: Task, calls: Sequence[tuple[Any, ...]], weights: Sequence[int] | None
    ) -> list[dict[str, Any]]:
        """The results of ``task(*call)``, in the order of the calls; ``weights``: bytes of each."""
        weights = weights or [self._num_bytes // len(calls)] * len(calls)
        groups = _groups(weights, max(int(2 * ray.cluster_resources().get("CPU", 1)), sum(weights) // TASK_BYTES))

        def run_group(row: dict[str, int]) -> dict[str, str]:
            return {"results": _results(task, [(place, calls[place]) for place in groups[row["item"]]])}

        results: dict[int, dict[str, Any]] = {}
        dataset = ray.data.from_items(list(range(len(groups))), override_num_blocks=len(groups)).map(run_group)
        try:
            for row in dataset.iter_rows():
                results |= _opened(row["results"])
                if self._progress is not None:
                    self._progress(phase, len(results), len(calls))
        except ray.exceptions.RayError as error:
            raise RunError(f"A task of prepare ({phase}) failed: {error}", "", "See Ray's logs.") from error
        return [results[place] for place in range(len(calls))]


def _results(task: Task, calls: Sequence[tuple[int, tuple[Any, ...]]]) -> str:
    """The results of some calls as JSON. A mistake of the user is a result too: Ray would print its trace."""
    try:
        return json.dumps([[place, task(*call)] for place, call in calls])
    except DistftError as error:
        return json.dumps(error.to_json())


def _opened(text: str) -> dict[int, dict[str, Any]]:
    value = json.loads(text)
    if isinstance(value, dict):
        raise revived(value)
    return dict(value)


def _groups(weights: Sequence[int], count: int) -> list[list[int]]:
    """Consecutive numbers in at most ``count`` groups of about equal weight."""
    share = (sum(weights) + len(weights)) / max(1, min(count, len(weights)))
    groups: list[list[int]] = [[]]
    filled = 0.0
    for number, weight in enumerate(weights):
        if groups[-1] and filled >= share * len(groups):
            groups.append([])
        groups[-1].append(number)
        filled += weight + 1
    return groups
