"""Hashes that never change: the same in every run, on every machine, with every version of every library.

A user belongs to a shard by the CRC-32 of the UTF-8 bytes of the user id, mixed by SplitMix64; random splits and
the training order are SplitMix64 of their keys. Library hashes (Python's, Polars', numpy's generators) promise no
such thing, and would move users between shards with an upgrade.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 of every value (Steele, Lea and Flood, 2014)."""
    x = values + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def key(*parts: int) -> int:
    """One 64-bit key of several numbers, in order."""
    state = 0
    for part in parts:
        state = int(mix(np.array([state ^ (part & _MASK)], np.uint64))[0])
    return state


def keyed(seed: int, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Random-looking numbers for ``values`` under ``seed``."""
    return mix(values ^ np.uint64(seed))


def permutation(seed: int, size: int) -> NDArray[np.int64]:
    """0 … size - 1 in an order that depends on the seed alone."""
    return np.argsort(keyed(seed, np.arange(size, dtype=np.uint64)), kind="stable").astype(np.int64)


def hash_ids(ids: Iterable[str]) -> NDArray[np.uint64]:
    """64-bit hash of every id."""
    return mix(np.fromiter((zlib.crc32(value.encode()) for value in ids), np.uint64))


def hash_texts(ids: pa.StringArray) -> NDArray[np.uint64]:
    """``hash_ids`` of an Arrow array without nulls: its CRCs are computed side by side, byte after byte."""
    _, offsets, data = ids.buffers()
    start = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    octets = np.frombuffer(data if data is not None else b"", np.uint8)
    crc = np.full(len(ids), 0xFFFFFFFF, np.uint32)
    left = np.flatnonzero(np.diff(start))
    place, end = start[:-1][left], start[1:][left]
    while len(left):
        state = crc[left]
        crc[left] = _CRC_TABLE[(state ^ octets[place]) & np.uint32(0xFF)] ^ (state >> np.uint32(8))
        place = place + 1
        if (place == end).any():
            longer = place < end
            left, place, end = left[longer], place[longer], end[longer]
    return mix((crc ^ np.uint32(0xFFFFFFFF)).astype(np.uint64))


def _crc_table() -> NDArray[np.uint32]:
    """CRC-32 of every byte, reflected polynomial 0xEDB88320, as zlib has it."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0xEDB88320), table >> 1)
    return table


_CRC_TABLE = _crc_table()


def uniform(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Hashes as numbers in [0, 1)."""
    return np.asarray((hashes >> np.uint64(11)).astype(np.float64) / (1 << 53))
