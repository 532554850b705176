from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distft.data.exchange import SCHEMA, ExchangeWriter
from distft.data.parquet import write_tables
from distft.data.partition import save_arrays
from distft.errors import StorageError
from distft.storage import Storage

FULL = Storage("/dev")  # its file "full" is a disk without space
SAID = r"/dev/full cannot be written: .*No space left on device.* Free some space"


def test_a_full_disk_is_told_as_such() -> None:
    with pytest.raises(StorageError, match=SAID):
        save_arrays(FULL, "full", {"a": np.arange(9)})
    with pytest.raises(StorageError, match=SAID):
        write_tables(FULL, "full", pa.schema([("a", pa.int64())]), [pa.table({"a": [1]})])
    events = pa.table([["u"], ["i"], [1], [0], ["q"], [1.0], [1.0]], schema=SCHEMA)
    with pytest.raises(StorageError, match=SAID), ExchangeWriter(FULL, "full", 4) as writer:
        writer.add(events)


def test_what_fails_in_reading_is_not_called_writing(tmp_path: Path) -> None:
    def tables() -> Iterator[pa.Table]:
        yield pa.table({"a": [1]})
        raise OSError("Corrupt snappy data")

    with pytest.raises(OSError, match=r"^Corrupt snappy data$"):
        write_tables(Storage(tmp_path), "a.parquet", pa.schema([("a", pa.int64())]), tables())
