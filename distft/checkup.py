"""What one machine tells of itself: software, memory, disk, GPUs, and whether it can write to a storage.

Enters: the URI of a storage, or nothing. Leaves: plain values that travel as JSON. Knows no Ray: ``doctor`` runs it on
every node. Nothing is judged here, because a judgement needs the other machines.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from distft.errors import DistftError
from distft.storage import Storage

PACKAGES = ("distft", "ray", "torch", "deepspeed", "pyarrow", "numpy", "safetensors")
"""What must be the same everywhere: values that they write are read elsewhere."""

SHARED_MEMORY = "/dev/shm"
MARK_FOLDER = ".distft-doctor"


def checkup(storage: str | None, mark: str, name: str, address: str = "127.0.0.1") -> dict[str, Any]:
    """What is true of this machine, as JSON values; a mark named ``name`` is left in the storage, to be found.

    ``lookup_s``: how long it takes to learn the name of ``address``, or that it has none.
    """
    return {
        "host": socket.gethostname(),
        "versions": versions(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "shared_memory_bytes": shutil.disk_usage(SHARED_MEMORY).total if os.path.isdir(SHARED_MEMORY) else 0,
        "disk": {"path": tempfile.gettempdir(), "free_bytes": shutil.disk_usage(tempfile.gettempdir()).free},
        "gpu": _gpu(),
        "lookup_s": _lookup_s(address),
        "not_written": None if storage is None else _leave(storage, mark, name),
        "clock_s": time.time(),
    }


def marks_seen(storage: str, mark: str) -> list[str] | str:
    """Names of the marks that are found in the storage from here; a text where it cannot be read."""
    try:
        folder = Storage(storage) / MARK_FOLDER / mark
        return sorted(name for name in folder.list() if folder.read_bytes(name) == name.encode())
    except (DistftError, OSError) as error:
        return str(error)


@contextmanager
def marking(storage: str | None) -> Iterator[str]:
    """Gives the folder of this check's marks; afterwards the storage is as it was."""
    mark = uuid.uuid4().hex[:12]
    root = None if storage is None else Storage(storage)
    is_new = root is not None and root.is_local and not os.path.exists(root.uri)
    try:
        yield mark
    finally:
        if root is not None:
            root.delete_tree(f"{MARK_FOLDER}/{mark}")
            for folder in (f"{root.uri}/{MARK_FOLDER}", *([root.uri] if is_new else [])):
                with suppress(OSError):  # another check's, or there is nothing
                    os.rmdir(folder)


def versions() -> dict[str, str | None]:
    """Of Python and of what must be the same everywhere; None for what is not installed."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _leave(storage: str, mark: str, name: str) -> str | None:
    try:
        (Storage(storage) / MARK_FOLDER / mark).write_bytes(name, name.encode())
    except (DistftError, OSError) as error:
        return str(error)
    return None


def _lookup_s(address: str) -> float:
    started_s = time.perf_counter()
    with suppress(OSError):
        socket.getnameinfo((address, 0), 0)
    return time.perf_counter() - started_s


def _gpu() -> dict[str, Any]:
    """What torch sees; ``driver``: whether the machine has NVIDIA's."""
    import torch

    nccl = torch.cuda.nccl.version() if torch.version.cuda else None  # type: ignore[no-untyped-call]
    return {
        "driver": os.path.exists("/proc/driver/nvidia/version"),
        "cuda": torch.version.cuda,
        "nccl": None if nccl is None else ".".join(map(str, nccl)) if isinstance(nccl, tuple) else str(nccl),
        "devices": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    }
