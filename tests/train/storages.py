"""Storage that a test holds up: an object store in memory, and a folder behind a URI that other processes see too."""

from __future__ import annotations

import fnmatch
import threading
import time
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem


class Gated(MemoryFileSystem):
    """Writing a file that matches ``closed`` waits until ``opened`` is set; ``written`` has the order of all files."""

    protocol = "gated"
    closed = ""
    opened = threading.Event()
    written: list[str] = []  # noqa: RUF012

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb":
            name = path.rsplit("/", 1)[-1]
            if fnmatch.fnmatch(name, Gated.closed):
                assert Gated.opened.wait(30), f"{name} waited too long"
            Gated.written.append(name)
        return super()._open(path, mode, **options)

    @classmethod
    def close_for(cls, pattern: str) -> None:
        cls.closed, cls.opened, cls.written = pattern, threading.Event(), []


class Slow(LocalFileSystem):
    """A folder of which every file takes a while to be written."""

    protocol = "slow"
    delay_s = 0.15

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb":
            time.sleep(self.delay_s)
            self.makedirs(self._parent(path), exist_ok=True)
        return super()._open(path, mode, **options)


fsspec.register_implementation("gated", Gated, clobber=True)
fsspec.register_implementation("slow", Slow, clobber=True)
