"""Which rank failed first, and of what: from what every rank ended with.

Enters: the errors of an attempt's ranks as Ray reports them. Leaves: a ``Failure``, and the list of a run's failures
in ``failures.json`` of the stage's folder. Surprising choice: a broken connection is never the cause. When a process
goes, every other rank fails in its next collective, usually before anybody has noticed the death itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from errno import EDQUOT, ENOSPC
from typing import Any

import ray.exceptions

from distft.errors import ArtefactError, DamagedError, DistftError, NotFiniteError, StalledError, TrainingError
from distft.storage import Storage

FAILURES = "failures.json"
PAGE = "failure.html"

STALL, KILLED, MEMORY, NODE, PREEMPTED = "stall", "killed", "out of memory", "node lost", "preempted"
DISK, NOT_FINITE, DAMAGED, EXCEPTION, NOT_STARTED = "disk full", "not finite", "damaged", "exception", "not started"

_WRAPPED = ("_base_exc", "cause", "health_check_failure", "controller_failure")
_PEER = re.compile(
    r"closed by peer|reset by peer|broken pipe|connectFullMesh|socket (closed|timeout)|remote process exited"
    r"|gloo/transport|ncclRemoteError|NCCL communicator was aborted|wait timeout|Connection refused",
    re.IGNORECASE,
)
_FULL = re.compile("|".join(re.escape(os.strerror(number)) for number in (ENOSPC, EDQUOT)))


@dataclass(frozen=True)
class Failure:
    """One failed attempt: its first failing rank (None: all alike), the likely cause, and where that rank stood.

    ``followed``: ranks that only failed because that one went. ``log``: the file that Ray wrote of the rank.
    ``reached``: the step that the attempt had come to; the one that the rank was seen at may be a second older.
    """

    cause: str
    what: str
    rank: int | None = None
    num_workers: int = 0
    reached: int | None = None
    step: int | None = None
    phase: str = ""
    node: str = ""
    pid: int | None = None
    followed: tuple[int, ...] = ()
    stack: tuple[str, ...] = ()
    log: str = ""
    at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def to_json(self) -> dict[str, Any]:
        """The failure as a JSON value."""
        return asdict(self)


def write_failures(folder: Storage, failures: list[Failure]) -> None:
    """Writes down the failures of this run so far."""
    folder.write_json(FAILURES, [failure.to_json() for failure in failures])


def read_failures(folder: Storage) -> list[dict[str, Any]]:
    """The failures of the latest run, oldest first; none where it has had none."""
    if not folder.exists(FAILURES):
        return []
    found: list[dict[str, Any]] = folder.read_json(FAILURES)
    return found


def forget(folder: Storage) -> None:
    """Removes what tells of failures: a run starts, or has succeeded."""
    for name in (FAILURES, PAGE):
        folder.delete(name)


# -- what an error means -----------------------------------------------------------------------------------


def cause_of(error: BaseException) -> str | None:
    """One of the causes above; None for an error that says no more than that another rank has gone."""
    chain = list(causes(error))
    for one in chain:
        if isinstance(one, StalledError):
            return STALL
        if isinstance(one, NotFiniteError):
            return NOT_FINITE
        if _is_full(one):
            return DISK
        if isinstance(one, ArtefactError | DamagedError):
            return DAMAGED
        if isinstance(one, ray.exceptions.OutOfMemoryError | MemoryError) or type(one).__name__ == "OutOfMemoryError":
            return MEMORY
        if isinstance(one, ray.exceptions.RayActorError):
            return _death(one)
    return None if any(_is_of_a_peer(one) for one in chain) else EXCEPTION


def first_failing(errors: Mapping[int, BaseException]) -> int:
    """The rank whose error is a cause of its own; where several have one, the one that tells most of it."""
    order = (MEMORY, DISK, NOT_FINITE, DAMAGED, STALL, NODE, PREEMPTED, EXCEPTION, KILLED, None)
    return min(sorted(errors), key=lambda rank: order.index(cause_of(errors[rank])))


def own_error(error: BaseException) -> DistftError | None:
    """The error of ours that an error of Ray's carries, if there is one."""
    return next((cause for cause in causes(error) if isinstance(cause, DistftError)), None)


def last_line(error: BaseException) -> str:
    """What an error says, without the traces that Ray puts before it."""
    innermost = [cause for cause in causes(error) if not isinstance(cause, ray.exceptions.RayError)]
    chosen = innermost[-1] if innermost else error
    lines = [line.strip() for line in str(chosen).splitlines() if line.strip()]
    name = type(chosen).__name__
    return f"{name}: {lines[-1]}" if lines else name


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that it wraps, in Ray's ways and in Python's."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        wrapped = [getattr(current, name, None) for name in _WRAPPED]
        waiting += [e for e in [*wrapped, current.__cause__] if isinstance(e, BaseException)]


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
        return True
    return isinstance(error, DistftError | OSError | RuntimeError) and bool(_FULL.search(str(error)))


def _is_of_a_peer(error: BaseException) -> bool:
    return isinstance(error, RuntimeError | OSError) and bool(_PEER.search(str(error)))


def _death(error: ray.exceptions.RayActorError) -> str:
    text = str(error)
    if error.preempted:
        return PREEMPTED
    if "memory monitor" in text or "running low on memory" in text or "OutOfMemory" in text:
        return MEMORY
    return NODE if re.search(r"node (has )?died|node was (terminated|dead)|node is dead|its node", text) else KILLED


# -- how it is told ----------------------------------------------------------------------------------------


def as_error(folder: Storage, error: BaseException, logs: str) -> DistftError:
    """What a run ends with: our own error of the rank that failed first, or one that tells of its end.

    The failure is in its ``details``, with those before it that the run got over.
    """
    noted = read_failures(folder)
    ranks: Mapping[int, BaseException] = getattr(error, "worker_failures", None) or {}
    own = own_error(ranks[first_failing(ranks)] if ranks else error)
    if not noted:
        noted = [_unnoted(error, ranks, logs).to_json()]
    latest = noted[-1]
    raised = own or TrainingError(latest["what"], "", f"The workers' logs are in {latest['log'] or logs}.")
    raised.details = {**latest, "before": noted[:-1]}
    return raised


def _unnoted(error: BaseException, ranks: Mapping[int, BaseException], logs: str) -> Failure:
    """The failure of a group that never started, or of one whose failure could not be written down."""
    if not ranks:
        return Failure(NOT_STARTED, f"The training could not go on: {last_line(error)}", log=logs)
    rank = first_failing(ranks)
    followed = tuple(other for other in sorted(ranks) if other != rank)
    what = f"Rank {rank} failed: {last_line(ranks[rank])}"
    return Failure(cause_of(ranks[rank]) or EXCEPTION, what, rank, followed=followed, log=logs)


def met_by_all(folder: Storage, error: DistftError, num_workers: int) -> DistftError:
    """The error that every rank met at the same point, with the failure in its ``details``."""
    failure = Failure(cause_of(error) or EXCEPTION, error.what, num_workers=num_workers)
    error.details = {**failure.to_json(), "before": read_failures(folder)}
    return error
