"""Writes tensors as safetensors, as a stream, and hashes the bytes as they go by; reads large ones a piece at a time.

Enters: tensors on the CPU, by name. Leaves: a file, its size and its SHA-256. Surprising choice: safetensors' own
writer is not used, because it first builds the whole file in memory, twice; here no more than a chunk is in flight, and
while it is hashed or written other threads run.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import IO, Any

import torch
from torch import Tensor

from distft.storage import Storage
from distft.train.position import here

CHUNK_BYTES = 1 << 22
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(storage: Storage, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """{"sha256", "bytes"} of the safetensors file that was written, whole or not at all. Raises StorageError."""
    # The widest first, as the format wants every tensor aligned to its element.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    with storage.writing(name) as stream:
        hashed = _Hashed(stream)
        hashed.write(_header(ordered))
        for _, tensor in ordered:
            hashed.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return {"sha256": hashed.sha.hexdigest(), "bytes": hashed.size}


def read_rows(storage: Storage, name: str) -> Iterator[tuple[str, int, Tensor]]:
    """(tensor's name, first row, rows) of all tensors of a safetensors file, in fp32 and about CHUNK_BYTES at a time.

    For files of which the manifest's hash was held against every byte before.
    """
    with storage.open_input(name) as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        entries = json.loads(stream.read(size))
        for key, entry in sorted(entries.items(), key=lambda item: item[1].get("data_offsets", [0])[0]):
            if key == "__metadata__":
                continue
            shape = entry["shape"]
            each = 4 * math.prod(shape[1:])
            rows = max(1, CHUNK_BYTES // max(1, each))
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                data = bytearray(stream.read(count * each))
                here.beat()
                yield key, start, torch.frombuffer(data, dtype=torch.float32).view(count, *shape[1:])


def _header(ordered: list[tuple[str, Tensor]]) -> bytes:
    entries, end = {}, 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class _Hashed:
    """A stream that knows the size and SHA-256 of what was written to it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.sha, self.size = stream, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), CHUNK_BYTES):
            chunk = view[start : start + CHUNK_BYTES]
            self.sha.update(chunk)
            self.stream.write(chunk)
            self.size += len(chunk)
            here.beat()
