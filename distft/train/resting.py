"""Tensors that rest in files: what of a training is used once a step need not stay in memory.

Enters: a folder of a disk of this machine. Leaves: tensors that are mapped to files there; the system reads them when
they are used, writes what changed, and keeps of them what the memory has room for. Surprising choice: DeepSpeed has a
swapper of its own, which needs a compiler and works at stage 3 alone, and which this is instead of; see
docs/decisions/0019-optimiser-state-in-files.md.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

import psutil
import torch
from torch import Tensor

from distft.errors import StorageError, UsageError

IN_MEMORY = ("tmpfs", "ramfs")
_KEY = "train.zero.nvme_path"


class RestingTensors:
    """Makes tensors of one process that rest in files below ``folder``.

    A file loses its name once it is mapped: the disk gets its room back when the process ends, however it ends.
    Raises UsageError where the folder cannot be written to, or is one of memory.
    """

    def __init__(self, folder: str) -> None:
        self.folder = _usable(folder)
        self._maps: list[mmap.mmap] = []

    def zeros_like(self, tensor: Tensor) -> Tensor:
        """A tensor of zeros of this shape and type that rests. Raises StorageError where the disk has no room."""
        num_bytes = tensor.numel() * tensor.element_size()
        if not num_bytes:
            return torch.zeros_like(tensor, requires_grad=False)
        try:
            with tempfile.TemporaryFile(dir=self.folder, prefix="distft-state-") as file:
                # Room that is not there is told here; in a mapping it would end the process.
                os.posix_fallocate(file.fileno(), 0, num_bytes)
                mapped = mmap.mmap(file.fileno(), num_bytes)
        except OSError as error:
            what = f"The optimiser's state has no room in {self.folder}: {error.strerror}"
            room = f"{num_bytes:,} bytes more; every worker needs 12 bytes for each weight of its part"
            raise StorageError(what, room, f"Make room there, or name a larger disk in {_KEY}.") from error
        self._maps.append(mapped)
        return torch.frombuffer(mapped, dtype=tensor.dtype).view(tensor.shape)

    def moved(self, tensor: Tensor) -> Tensor:
        """The values of a tensor, resting."""
        return self.zeros_like(tensor).copy_(tensor.detach())

    def rest(self) -> None:
        """Gives the memory of all of them back. Nothing is lost and nothing waits: the system writes behind."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)


def _usable(folder: str) -> str:
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        what = f"{_KEY} is {folder}, which cannot be written to: {error.strerror or error}"
        raise UsageError(what, "a folder of a disk of every machine that trains", "Name another.") from error
    if (kind := _filesystem(path.resolve())) in IN_MEMORY:
        what = f"{_KEY} is {folder}, which lies in memory ({kind})"
        raise UsageError(what, "a folder of a disk", "Name one, or set train.zero.offload to cpu.")
    return str(path)


def _filesystem(path: Path) -> str:
    """The kind of file system that holds a path."""
    mounts = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[str(place)] for place in (path, *path.parents) if str(place) in mounts), "")
