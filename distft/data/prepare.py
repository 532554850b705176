"""Event logs → ``<storage>/dataset/``: the phases of ``phases.py``, read by Ray Data and finished by Ray tasks.

Surprising choice: Ray Data reads the logs, but its shuffles are not used: on per-user lists they are four to ten
times slower than partitioning once by hash and passing the partitions through storage, which bounds the memory and
works on several nodes alike. The phases after that are short and their inputs known, so they are plain Ray tasks:
each execution of Ray Data would keep all CPUs but one idle for its first second. How many tasks run at once, and
where, changes no byte of the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import ray
import ray.data
import ray.exceptions

from distft.cluster import quiet_data
from distft.data.exchange import num_partitions
from distft.data.phases import Page, Phases, Task
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
"""Small read tasks share a Ray task up to this size, while all CPUs have some."""

TASKS_PER_CPU = 8
"""Ray tasks of a phase after reading, which cost little: so many that no CPU waits long for the last one."""


def prepare(
    job: Job,
    parent: Storage,
    made_from: dict[str, Any],
    progress: Progress | None = None,
    page: Page | None = None,
) -> dict[str, Any]:
    """Writes ``<parent>/dataset/`` and gives its ``stats.json``; ``page`` makes its report of them.

    Ray must be up. Raises DataError and LeakError.
    """
    sources = [config.open() for config in job.data.events]
    settled = settle(job, sources)
    num_bytes = sum(task.num_bytes for _, task in settled.reads)
    with parent.replacing("dataset") as staging, quiet_data():
        names = settled.start.event_names
        context = Context(job, staging, names, num_partitions(num_bytes), settled.key_digest)
        for folder in ("work", "rejected", *SPLITS):
            (staging / folder).make()
        runner = Runner(progress)
        phases = Phases(context, settled.start, settled.tables, runner.each)
        return phases.run(settled.reads, made_from, page)


class Runner:
    """Runs the tasks of a phase on the cluster, several calls a Ray task."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def each(
        self, phase: str, task: Task, calls: Sequence[tuple[Any, ...]], weights: Sequence[int] | None
    ) -> list[dict[str, Any]]:
        """The results of ``task(*call)``, in the order of the calls; ``weights``: bytes that each reads of a log."""
        num_cpus = int(ray.cluster_resources().get("CPU", 1))
        if weights is None:
            groups = _groups([1] * len(calls), TASKS_PER_CPU * num_cpus)
        else:
            groups = _groups(weights, max(2 * num_cpus, sum(weights) // TASK_BYTES))

        def run_group(number: int) -> str:
            return _results(task, [(place, calls[place]) for place in groups[number]])

        results: dict[int, dict[str, Any]] = {}
        run = _by_tasks if weights is None else _by_data
        try:
            with closing(run(run_group, len(groups))) as texts:
                for text in texts:
                    results |= _opened(text)
                    if self._progress is not None:
                        self._progress(phase, len(results), len(calls))
        except ray.exceptions.RayError as error:
            raise RunError(f"A task of prepare ({phase}) failed: {error}", "", "See Ray's logs.") from error
        return [results[place] for place in range(len(calls))]


def _by_data(run: Callable[[int], str], count: int) -> Generator[str]:
    """``run(number)`` of 0 … count - 1 as they are done, in one execution of Ray Data."""

    def run_row(row: dict[str, int]) -> dict[str, str]:
        return {"result": run(row["item"])}

    for row in ray.data.from_items(list(range(count)), override_num_blocks=count).map(run_row).iter_rows():
        yield row["result"]


def _by_tasks(run: Callable[[int], str], count: int) -> Generator[str]:
    """``run(number)`` of 0 … count - 1 as they are done, each a Ray task; those left when it is closed are ended."""
    remote = ray.remote(num_cpus=1)(run)
    waiting = [remote.remote(number) for number in range(count)]
    try:
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)
    finally:
        for task in waiting:
            ray.cancel(task)


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
