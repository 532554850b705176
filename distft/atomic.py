"""Files and folders of a local disk, changed whole or not at all.

Surprising choice: two folders change places by ``renameat2(2)`` with RENAME_EXCHANGE, which Python does not offer:
two renames would leave a moment in which neither is there.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PART = ".part"
"""Ends the name of a file that is being written; one that stays is of a process that was killed."""

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_AT_FDCWD = -100


def write_local(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all. Raises OSError."""
    with writing(path) as stream:
        stream.write(data)


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A stream into a file that comes into being, whole, when the block ends well: beside its place, then renamed.

    File, folder, and the folders made for it outlive a crash of the machine. Raises OSError.
    """
    _make(path.parent)
    beside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}{PART}"
    try:
        with open(beside, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    _fsync(path.parent)


def _make(folder: Path) -> None:
    """Makes a folder with those above it; each is known to the one above it before anything is put there."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync(folder.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Makes sure that a folder and all that it holds outlive a crash of the machine."""
    for folder, _, files in os.walk(root):
        for name in files:
            _fsync(Path(folder) / name)
        _fsync(Path(folder))


def exchange(staging: Path, target: Path) -> None:
    """Puts ``staging`` in the place of ``target``; what stood there is then at ``staging``."""
    if not target.exists():
        os.rename(staging, target)
    elif not _renameat2(staging, target):
        aside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        os.rename(target, aside)
        os.rename(staging, target)
        shutil.rmtree(aside, ignore_errors=True)
    _fsync(target.parent)


def _renameat2(first: Path, second: Path) -> bool:
    """Exchanges two folders in one step; False where the kernel or the file system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _EXCHANGE) == 0)
