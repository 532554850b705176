"""TensorBoard's event file of a training, made from its journal.

Enters: lines of metrics.jsonl. Leaves: ``<stage>/tensorboard/events.out.tfevents.<n>``. Surprising choice: a run that
goes on writes a new file with all lines from the first on, headed by a mark that makes an open TensorBoard forget what
it has read of the old one. So every step stands there once, after any number of interruptions.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from distft.errors import StorageError
from distft.storage import Storage, explained
from distft.train.following import Ending, Line, Observer
from distft.train.journal import PLACE_KEYS

FOLDER = "tensorboard"
_NAME = "events.out.tfevents."
_NOT_SHOWN = {*PLACE_KEYS, "time_s"}


class TensorBoard(Observer):
    """Keeps the event file of one stage up to date."""

    def __init__(self, stage: Storage) -> None:
        self._folder = stage / FOLDER
        self._written: list[Line] = []
        self._name = ""

    def begin(self, known: Sequence[Line]) -> None:
        old = sorted(name for name in self._folder.list() if re.fullmatch(rf"{re.escape(_NAME)}\d+", name))
        self._name = f"{_NAME}{int(old[-1].rsplit('.', 1)[1]) + 1 if old else 0:010d}"
        self._written = list(known)
        self._write_all()
        for name in old[:-1]:  # the last one an open TensorBoard must still find, to go on from it to ours
            self._folder.delete(name)

    def see(self, lines: Sequence[Line]) -> None:
        if not lines:
            return
        self._written += lines
        if self._folder.is_local:
            data = b"".join(_records(lines))
            try:
                with explained(self._folder.uri), open(self._folder.path / self._name, "ab") as stream:
                    stream.write(data)
            except StorageError:
                return  # a full disk, of which the checkpoints tell; ``end`` writes it whole again
        else:
            self._write_all()

    def end(self, ending: Ending, journal: Sequence[Line]) -> None:
        """Where workers were restarted, their lines may have come out a little differently: the journal counts."""
        self._written = list(journal)
        self._write_all()

    def _write_all(self) -> None:
        data = b"".join([_record(_version()), _record(_start()), *_records(self._written)])
        try:
            self._folder.make()
            self._folder.write_bytes(self._name, data)
        except StorageError:
            return


def scalars(line: Line) -> dict[str, float]:
    """What a line measured, by name: train/loss, valid/ndcg@10; nothing for a line of words."""
    if line["kind"] not in ("train", "valid"):
        return {}
    numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and key not in _NOT_SHOWN}
    return {f"{line['kind']}/{key}": float(value) for key, value in numbers.items()}


def _records(lines: Sequence[Line]) -> Iterator[bytes]:
    from tensorboardX.proto import event_pb2, summary_pb2

    for line in lines:
        values = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line).items()]
        if values:
            summary = summary_pb2.Summary(value=values)
            yield _record(event_pb2.Event(wall_time=line.get("time_s", 0.0), step=line["step"], summary=summary))


def _version() -> Any:
    from tensorboardX.proto import event_pb2

    return event_pb2.Event(file_version="brain.Event:2")


def _start() -> Any:
    from tensorboardX.proto import event_pb2

    return event_pb2.Event(step=0, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))


def _record(event: Any) -> bytes:
    """An event as TFRecord: its length and its bytes, each with a masked CRC-32C."""
    from tensorboardX.crc32c import crc32c

    def checked(data: bytes) -> bytes:
        crc = crc32c(data)
        return data + struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    body = event.SerializeToString()
    return checked(struct.pack("<Q", len(body))) + checked(body)
