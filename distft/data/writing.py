"""Failures of writing to storage, told to the user.

Enters: a block of code that writes one file. Leaves: StorageError in the place of OSError, with what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from distft.errors import StorageError
from distft.storage import Storage

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def writing(storage: Storage, name: str) -> Iterator[None]:
    """Raises StorageError where the block raises OSError; nothing but the writing of ``name`` belongs in it."""
    try:
        yield
    except OSError as error:
        raise not_written(storage, name, error) from error


def not_written(storage: Storage, name: str, error: OSError) -> StorageError:
    """The error for a file that could not be written."""
    remedy = "Check the free space and the permissions there."
    if error.errno in _FULL:
        remedy = "Free some space, then run the same command again: what was committed is intact."
    return StorageError(f"{storage.uri}/{name} cannot be written: {error}", "", remedy)
