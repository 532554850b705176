"""Which model a service runs, which one it ran before, and what became of every bundle that was to take its place.

Enters: the folder where a service keeps its state. Leaves: ``deployments.json`` in it, written whole. Surprising
choice: wherever a bundle is named, a service's folder may be named instead and stands for the model it runs, so that
tomorrow's fine-tuning starts from what is served, whatever the guard let through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Literal

from distft.errors import ArtefactError
from distft.storage import MANIFEST, Storage

FILE = "deployments.json"
FOLDER, BUNDLE = "service", "bundle"
"""Names in a job's storage of what a declared service keeps, and of what it starts with: see ``k8s``."""
KEPT = 100
"""Attempts that are remembered."""

Outcome = Literal["started", "promoted", "refused", "rolled back"]


@dataclass(frozen=True)
class Model:
    """A bundle that is or was served, and the beginning of its manifest's hash: it may have been written anew."""

    bundle: str
    version: str


@dataclass(frozen=True)
class Attempt:
    """What became of a bundle. ``checks``: what was found, see ``deploy.checks``; ``reason``: why it was refused."""

    bundle: str
    version: str
    outcome: Outcome
    reason: str = ""
    checks: Sequence[Mapping[str, Any]] = ()
    time: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class Record:
    """The history of a service, the latest attempt last."""

    running: Model | None = None
    before: Model | None = None
    attempts: tuple[Attempt, ...] = ()


def read_record(state: Storage) -> Record:
    """The record of a service's folder; an empty one where nothing was served yet. Raises ArtefactError."""
    if not state.exists(FILE):
        return Record()
    value = state.read_json(FILE)
    try:
        running, before = (None if value[name] is None else Model(**value[name]) for name in ("running", "before"))
        return Record(running, before, tuple(Attempt(**attempt) for attempt in value["attempts"]))
    except (TypeError, KeyError) as error:
        what = f"{state}/{FILE} is no record of deployments: {error}"
        raise ArtefactError(what, "as distft wrote it", "Restore it from a copy, or delete it.") from error


def note(state: Storage, attempt: Attempt) -> Record:
    """Adds an attempt; what was started, promoted or rolled back to is running from now on."""
    record = read_record(state)
    running, before = record.running, record.before
    if attempt.outcome != "refused":
        model = Model(attempt.bundle, attempt.version)
        if model != running:
            before = running
        running = model
    record = replace(record, running=running, before=before, attempts=(*record.attempts, attempt)[-KEPT:])
    state.make()
    state.write_json(FILE, asdict(record))
    return record


def bundle_at(place: str) -> Storage:
    """The storage at a place; where it is a service's folder, that of the bundle which the service runs.

    As long as a service of a cluster was promoted nothing, nobody has noted what it runs: that is the bundle beside its
    folder. Raises ArtefactError where a service has tried bundles, and runs none.
    """
    storage = Storage(place)
    recorded = storage.exists(FILE)
    running = read_record(storage).running if recorded else None
    if running is not None:
        return Storage(running.bundle)
    folder, _, name = storage.uri.rpartition("/")
    if name == FOLDER and Storage(f"{folder}/{BUNDLE}").exists(MANIFEST):
        return Storage(f"{folder}/{BUNDLE}")
    if recorded:
        raise ArtefactError(f"Nothing is served from {storage}", "a service that has started", "Name a bundle instead.")
    return storage
