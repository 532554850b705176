"""What prepare settles before it reads the logs: event codes, the clock, the base of the vocabulary, feature tables.

Enters: a job and its opened sources. Leaves: a ``Settled``, or the mistake that would only show itself after hours of
reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distft.data.inherit import check_continues, open_base
from distft.data.pseudonyms import discreet, open_pseudonyms
from distft.data.vocabulary import Start, item_features, user_features
from distft.errors import DataError

if TYPE_CHECKING:
    from distft.data.phases import Tables
    from distft.data.sources.base import ReadTask, Source
    from distft.job import Job
    from distft.sections.features import Encode


@dataclass(frozen=True)
class Settled:
    """``reads``: the read tasks, each with the number of its source. ``key_digest``: of the key of pseudonyms."""

    start: Start
    tables: Tables
    reads: list[tuple[int, ReadTask]]
    key_digest: str | None


def settle(job: Job, sources: Sequence[Source]) -> Settled:
    """What is known before the first task runs. Raises DataError, UsageError for a bad key, and ArtefactError."""
    has_clock = _has_clock(job, sources)
    pseudonyms = open_pseudonyms(job.data.pseudonyms)
    with discreet(pseudonyms is not None):
        items, users = item_features(job, sources), user_features(job, sources)
        reads = [(number, task) for number, source in enumerate(sources) for task in source.read_tasks()]
    tables = items, pseudonyms.features(users) if pseudonyms and users else users
    _check_encoding(job.data.encode, tables)
    start = _start(job, has_clock, tables)
    return Settled(start, tables, reads, pseudonyms.digest if pseudonyms else None)


def _start(job: Job, has_clock: bool, tables: Tables) -> Start:
    names = tuple(dict.fromkeys(name for config in job.data.events for name in config.event_names()))
    if job.data.vocabulary is None:
        return Start(names, has_clock)
    place = job.data.vocabulary.from_
    base = open_base(place)
    check_continues(base, place, has_clock, job.data.encode, tables)
    return Start(tuple(dict.fromkeys((*base.event_names, *names))), has_clock, base)


def _check_encoding(encode: Encode, tables: Tables) -> None:
    """Raises DataError where ``data.encode`` names a feature that no table has, or that is of another kind."""
    mistakes = encode.mistakes({name: kind for table in tables if table for name, kind in table.kinds().items()})
    if mistakes:
        path, text = mistakes[0]
        raise DataError(f"data.encode.{'.'.join(map(str, path))} does not fit the features: {text}")


def _has_clock(job: Job, sources: Sequence[Source]) -> bool:
    clocks = {source.has_clock for source in sources}
    if len(clocks) > 1:
        raise DataError(
            "Some of data.events have timestamps and some have none",
            "all or none of them to have a clock, since they are merged by time",
            "Map the timestamp of every log, or prepare them apart.",
        )
    if job.data.split.by == "time" and clocks == {False}:
        raise DataError("data.split is by time, but the log has no timestamps", "", "Use {by: leave_one_out}.")
    if job.data.clean.repeat_window_s and clocks == {False}:
        what = "data.clean.repeat_window_s is set, but the log has no timestamps"
        raise DataError(what, "", "Map the timestamp, or leave it out.")
    return clocks == {True}
