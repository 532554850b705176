"""Every error that distft raises on purpose, with the exit code it ends the command with.

::

    DistftError
    ├── UserError             exit 2: something the user can change
    │   ├── JobError          the job file, with file:line:column for every mistake
    │   ├── DataError         the event logs or what they hold
    │   ├── StorageError      a path or URI that cannot be read or written
    │   ├── ArtefactError     a dataset, checkpoint or bundle that is missing, damaged or of another job
    │   ├── StageChangedError a finished stage whose job keys or inputs changed
    │   ├── LockedError       another run holds the storage
    │   ├── UsageError        flags, ports, components that do not go together
    │   └── QueryError        a request for recommendations asks for what the model does not have
    └── RunError              exit 3: the job ran and failed
        ├── LeakError         a split would show the model its own target
        ├── TrainingError     a worker failed
        │   ├── StalledError  an attempt made no progress
        │   ├── DamagedError  no checkpoint is as it was written
        │   └── NotFiniteError  a loss or metric became NaN or infinite
        ├── ServingError      the service did not come up or did not answer
        └── RefusedError      a new model did not pass a check, and the old one goes on

An error says what happened (with the value), what was expected and what to do. All of them survive
pickling, because Ray carries them between processes: every argument is positional and is handed to
``Exception.__init__``.
"""

from __future__ import annotations

from typing import Any

EXIT_DONE = 0
EXIT_USER = 2
EXIT_FAILED = 3
EXIT_INTERRUPTED = 130


class DistftError(Exception):
    """Base of every error in the tree above.

    ``what`` happened, with the value; what was ``expected``; the ``remedy``, an instruction. The last two
    may be empty where they would only repeat the first. ``details``: what a program may want to know beyond the
    sentences; ``--json`` prints them.
    """

    exit_code = EXIT_FAILED
    details: dict[str, Any] | None = None

    def __init__(self, what: str, expected: str = "", remedy: str = "") -> None:
        super().__init__(what, expected, remedy)
        self.what = what
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:
        parts = [self.what]
        if self.expected:
            parts.append(f"Expected {self.expected}")
        if self.remedy:
            parts.append(self.remedy)
        return " ".join(part if part.endswith((".", "!", "?", ":")) else part + "." for part in parts)

    def to_json(self) -> dict[str, Any]:
        """The error as a value, which ``revived`` turns back: Ray would print the trace of one that is raised."""
        return {"error": type(self).__name__, "args": list(self.args)}


def revived(value: dict[str, Any]) -> DistftError:
    """The error that became this value."""
    kind: type[DistftError] = globals()[value["error"]]
    return kind(*value["args"])


class UserError(DistftError):
    """Something that the user can change."""

    exit_code = EXIT_USER


class JobError(UserError):
    """The job file does not hold a valid job; ``what`` lists every mistake, one a line."""

    def __str__(self) -> str:
        return self.what


class DataError(UserError):
    """The event logs cannot be read or do not hold what the job says."""


class StorageError(UserError):
    """A path or URI cannot be read or written."""


class ArtefactError(UserError):
    """A dataset, checkpoint or bundle is missing, damaged or belongs to another job."""


class StageChangedError(UserError):
    """A finished stage was made from other job keys or other inputs."""


class LockedError(UserError):
    """Another run is writing to the same storage."""


class UsageError(UserError):
    """Flags, ports or components that do not go together."""


class QueryError(UserError):
    """A request asks for what the model does not have; ``field`` is its path in the request."""

    def __init__(self, what: str, expected: str = "", remedy: str = "", field: str = "") -> None:
        super().__init__(what, expected, remedy)
        self.args = (what, expected, remedy, field)
        self.field = field


class RunError(DistftError):
    """The job ran and failed."""

    exit_code = EXIT_FAILED


class LeakError(RunError):
    """A split would show the model its own target."""

    exit_code = EXIT_USER


class TrainingError(RunError):
    """Training failed: a worker died too often, or could not start."""


class StalledError(TrainingError):
    """An attempt at a training made no progress for the time that the job sets."""


class DamagedError(TrainingError):
    """There are checkpoints, and none of them is as it was written."""


class NotFiniteError(TrainingError):
    """A loss or a validation metric is NaN or infinite."""


class ServingError(RunError):
    """The service did not come up, or did not answer."""


class RefusedError(RunError):
    """A new model did not pass a check of its promotion; the service goes on with the model that it had."""
