"""What frozen layers gave for a history, kept on disk: computed once, read in every later epoch.

Enters: the packed positions of a batch and the function that computes them. Leaves: their activations. Surprising
choice: a history is known by a hash of what the layers see of it, not by where it was read. So nothing here depends on
the order of reading, on epochs or on the number of workers, and a history that changes is computed again. The file has
no name: it is a worker's own, and ends with its process, however that ends; what is lost is computed again.

Shape legend: B histories, L positions, N packed positions, D width.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
import weakref
from collections.abc import Callable
from typing import IO

import numpy as np
import torch
from torch import Tensor

from distft.models.packing import Packing
from distft.schema import Batch

_log = logging.getLogger(__name__)


class Memo:
    """Activations by history, in a file of the folder for temporary files."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._dtype = torch.float32
        self._size = 0
        self._place: dict[bytes, tuple[int, int]] = {}
        self._is_full = False

    def of(self, batch: Batch, packing: Packing, compute: Callable[[], Tensor]) -> Tensor:
        """x_ND of the packed positions: read, where every history of the batch is known, else computed and kept."""
        keys = _keys(batch, packing)
        if not keys:  # of a rank that has nothing left to do in this step
            return compute()
        if all(key in self._place for key in keys):
            return self._read(keys, len(packing.index_N)).to(batch.item_BL.device)
        x_ND = compute()
        self._keep(keys, packing, x_ND)
        return x_ND

    def _keep(self, keys: list[bytes], packing: Packing, x_ND: Tensor) -> None:
        if self._is_full:
            return
        self._dtype = x_ND.dtype
        rows = x_ND.detach().cpu().contiguous().view(torch.uint8).numpy()
        start = 0
        for key, length in zip(keys, packing.lengths, strict=True):
            if key not in self._place and not self._write(key, rows[start : start + length].tobytes()):
                return
            start += length

    def _write(self, key: bytes, data: bytes) -> bool:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)
            weakref.finalize(self, self._file.close)
        try:
            written = os.pwrite(self._file.fileno(), data, self._size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            written = 0
        if written < len(data):
            self._is_full = True
            _log.warning("No room for more outputs of frozen layers in %s: they are computed", tempfile.gettempdir())
            return False
        self._place[key] = (self._size, len(data))
        self._size += len(data)
        return True

    def _read(self, keys: list[bytes], num_positions: int) -> Tensor:
        assert self._file is not None
        data = bytearray(sum(self._place[key][1] for key in keys))
        view, start = memoryview(data), 0
        for key in keys:
            place, size = self._place[key]
            read = os.preadv(self._file.fileno(), [view[start : start + size]], place)
            assert read == size, "what was written is there"
            start += size
        return torch.frombuffer(data, dtype=self._dtype).view(num_positions, -1)


def _keys(batch: Batch, packing: Packing) -> list[bytes]:
    """A hash of each history's events, in the order of the packing; how far the batch is padded plays no part."""
    columns = [tensor.cpu().numpy() for tensor in (batch.item_BL, batch.event_BL, batch.gap_BL)]
    query_BLQ = batch.query_BLQ.cpu().numpy()
    keys = []
    for row, length in zip(packing.rows, packing.lengths, strict=True):
        key = hashlib.blake2b(digest_size=16)
        for column in columns:
            key.update(column[row, :length].tobytes())
        query_LQ = query_BLQ[row, :length]
        key.update(np.ascontiguousarray(query_LQ[:, query_LQ.any(0)]).tobytes())
        keys.append(key.digest())
    return keys
